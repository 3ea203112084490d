"""Prompts of two domains, cut from modules that no model of the embedded pair has read."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import orjson

from draftloop.reference import Domain

from .corpus import Document, Part

COUNTS: dict[Part, int] = {"collect": 300, "benchmark": 150}
_MIN_CHARACTERS, _MAX_CHARACTERS = 30, 160
_HEADED = re.compile(r"^([\w.]+\n\n)?(.+)", re.DOTALL)


def choose(
    documents: Iterable[Document], domain: Domain, part: Part, seed: int, taken: Iterable[str] = ()
) -> list[str]:
    """`COUNTS[part]` distinct prompts of one domain, none of them one of `taken`, in random order.

    Raises:
        ValueError: the held-out modules give too few.
    """
    rng = random.Random(f"{seed}/{domain}/{part}")
    cut = _CUT[domain]
    by_module = [list(cut(found.text, rng)) for found in documents if (found.domain, found.part) == (domain, part)]
    for openings in by_module:
        rng.shuffle(openings)
    chosen: dict[str, str] = {}
    gone = {_normalised(text) for text in taken}
    while len(chosen) < COUNTS[part]:
        left = [openings for openings in by_module if openings]
        if not left:
            raise ValueError(f"{domain}/{part}: {len(chosen)} distinct prompts found, {COUNTS[part]} needed")
        for openings in left:  # one from each module in turn, so that no large module drowns the others
            text = openings.pop()
            if _normalised(text) not in gone:
                chosen.setdefault(_normalised(text), text)
    prompts = list(chosen.values())
    rng.shuffle(prompts)
    return prompts[: COUNTS[part]]


def openings(documents: Iterable[Document], domain: Domain, part: Part, rng: random.Random) -> Iterator[str]:
    """Every opening of one domain and part once, cut to a length drawn from `rng`."""
    for found in documents:
        if (found.domain, found.part) == (domain, part):
            yield from _CUT[domain](found.text, rng)


def write(prompts: Iterable[str], path: Path) -> None:
    """One JSON object with a `prompt` a line, as `collect-data --prompts-file` reads it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(orjson.dumps({"prompt": prompt}) + b"\n" for prompt in prompts))


def _normalised(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"\d+", "0", text.casefold())).strip()


def _fits(text: str) -> bool:
    return _MIN_CHARACTERS <= len(text) <= _MAX_CHARACTERS and text.isascii()


def _prose_openings(text: str, rng: random.Random) -> Iterator[str]:
    """The name of a documented thing where there is one, and the first words of what is said of it."""
    for paragraph in re.split(r"\n\n(?=[\w.]+\n\n|[A-Z])", text):
        match = _HEADED.match(paragraph)
        if match is None:
            continue
        words = re.findall(r"\S+\s*", match[2])
        if len(words) < 12 or any(mark in match[2][:80] for mark in (">>>", "  ", "|", "==", "--")):
            continue
        opening = (match[1] or "") + "".join(words[: rng.randint(5, 10)]).rstrip()
        if _fits(opening):
            yield opening


def _code_openings(text: str, rng: random.Random) -> Iterator[str]:
    """A `def` or `class` line with the one to three lines after it, moved to the left margin."""
    lines = text.splitlines()
    for row, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if not line.lstrip().startswith(("def ", "class ")):
            continue
        taken = lines[row : row + rng.randint(2, 4)]
        if any(other.strip() and not other.startswith(" " * indent) for other in taken):
            continue
        opening = "\n".join(other[indent:] for other in taken).rstrip()
        if _fits(opening):
            yield opening


_CUT: dict[Domain, Callable[[str, random.Random], Iterator[str]]] = {
    "prose": _prose_openings,
    "code": _code_openings,
}
