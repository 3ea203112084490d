"""Read the control tokens that a prompt spells as text, and those that the chat template writes as control tokens.

A tokenizer reads `<|im_start|>` as one token wherever it stands, so whoever writes a prompt could end his message and
begin another one's. What is in a prompt is text: its control tokens are spelled by ordinary tokens instead, the others
of the chat stay what they are.

1. In the messages, what spells a control token is put between two private characters that occur nowhere in them, in
   other case or with spaces too: a template may fold these. So is an end of a message that could become one together
   with what the template writes beside it, and a word that the template could put into the middle of one.
2. Rendered, the characters say which control tokens are the template's own. Rendering must not depend on them.
3. These are replaced by stand-ins in a copy of the tokenizer that knows the stand-ins and no control token. One pass of
   it over the whole text gives the tokens, and no border between pieces changes how the rest is read.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_PRIVATE = range(0xF0000, 0x10FFFD)
_MOST_IN_PARTS = 20_000_000  # characters that `_parts` may hold: thousands of control tokens as models have them
_MARKUP = re.compile(r"[^\w\s].*\w.*[^\w\s]", re.DOTALL)  # `<think>`, and not `user`, `0` or a run of spaces


class NotReadable(Exception):
    """A prompt whose control tokens cannot be read as text, and why."""


@dataclass(frozen=True)
class ControlTokens:
    """What a tokenizer reads as one token.

    Attributes:
        added: every added token, and its id.
        special: those marked as special: nobody's text.
        written: those that look like markup and that the template has too: roles, thinking, calls of tools. The
            messages of an assistant have them of right.
    """

    added: dict[str, int]
    special: frozenset[str]
    written: frozenset[str]

    @property
    def control(self) -> frozenset[str]:
        """All that the text of a user must not become."""
        return self.special | self.written

    def of_role(self, role: str) -> frozenset[str]:
        """What a message of this role must not become."""
        return self.special if role == "assistant" else self.control

    def spelled(self, text: str) -> list[re.Match[str]]:
        """Added tokens in a text, as a tokenizer finds them: the leftmost, and the longest of these."""
        return list(_any_of(frozenset(self.added)).finditer(text))

    def composed(self, text: str, probe: str, literal: str) -> frozenset[str]:
        """Control tokens in a rendered text that its template may have put together of pieces.

        Args:
            text: the rendered text.
            probe: what the template writes of a chat without a control token. Where it puts one together there, any
                of the text's may be.
            literal: what the template has as a whole.
        """
        controls, probed = ({one[0] for one in self.spelled(of) if one[0] in self.control} for of in (text, probe))
        return frozenset(one for one in controls if one not in literal or any(other not in literal for other in probed))


@lru_cache(maxsize=4)
def control_tokens(tokenizer: Any, template: str) -> ControlTokens:
    """The control tokens of a tokenizer and its chat template, "" for none.

    Raises:
        NotReadable: they are so many or so long that telling them from text would take memory without end.
    """
    tokens = {token.content: (i, token.special) for i, token in tokenizer.added_tokens_decoder.items() if token.content}
    if sum(len(content) ** 2 for content in tokens) > _MOST_IN_PARTS:
        raise NotReadable(
            f"this tokenizer has {len(tokens):,} added tokens of up to {max(map(len, tokens)):,} characters"
        )
    return ControlTokens(
        added={content: i for content, (i, _) in tokens.items()},
        special=frozenset(content for content, (_, special) in tokens.items() if special),
        written=frozenset(content for content in tokens if content in template and _MARKUP.fullmatch(content)),
    )


@dataclass(frozen=True)
class Markers:
    """Three private characters that a prompt does not have: before and after what it spells, and for stand-ins."""

    before: str
    after: str
    stand_in: str

    @classmethod
    def not_in(cls, text: str) -> Markers:
        """The first three of which none is in `text`.

        Raises:
            NotReadable: it has them all.
        """
        used = set(text)
        for first in _PRIVATE[:-2:3]:
            chosen = [chr(first + i) for i in range(3)]
            if used.isdisjoint(chosen):
                return cls(*chosen)
        raise NotReadable("it has every private character")

    def mark(
        self, text: str, tokens: ControlTokens, control: frozenset[str], composed: frozenset[str] = frozenset()
    ) -> str:
        """A text with marks around the control tokens that it spells, and at an end that could become one.

        What is a piece of one of those `composed` by the template has them at both ends.
        """
        lead, trail = len(text) - len(text.lstrip()), len(text.rstrip())
        begins, ends = _parts(control)
        lengths = range(1, max(map(len, control), default=0))
        exact = (match for match in tokens.spelled(text) if match[0] in control)
        loose = (match for match in _loosely(control).finditer(text) if match[0] not in tokens.added)
        inserted = [
            (place, mark)
            for match in (*exact, *loose)
            for place, mark in ((match.start(), self.before), (match.end(), self.after))
        ]
        piece = is_piece(text, composed)
        if piece or any(text[lead : lead + n] in ends for n in lengths):
            inserted.append((lead, self.before))
        if piece or any(text[max(trail - n, 0) : trail] in begins for n in lengths):
            inserted.append((trail, self.after))
        pieces, at = [], 0
        for place, mark in sorted(inserted, key=itemgetter(0)):
            pieces += [text[at:place], mark]
            at = place
        return "".join([*pieces, text[at:]])

    def unmark(self, text: str) -> Unmarked:
        """The text without its marks, and where in it they were."""
        pieces, places, at, length = [], {self.before: list[int](), self.after: list[int]()}, 0, 0
        for match in re.finditer(f"[{self.before}{self.after}]", text):
            pieces.append(text[at : match.start()])
            length += match.start() - at
            places[match[0]].append(length)
            at = match.end()
        return Unmarked("".join([*pieces, text[at:]]), places[self.before], places[self.after])


@dataclass(frozen=True)
class Unmarked:
    """A rendered text, and the places, ascending, before which something of a prompt begins and ends."""

    text: str
    begins: Sequence[int]
    ends: Sequence[int]

    def is_from_prompt(self, start: int, end: int) -> bool:
        """Whether a prompt has all of these characters, or a part of them."""
        whole = start in self.begins and end in self.ends
        after = ((places, bisect_right(places, start)) for places in (self.begins, self.ends))
        return whole or any(at < len(places) and places[at] < end for places, at in after)


@lru_cache(maxsize=4)
def _any_of(contents: frozenset[str]) -> re.Pattern[str]:
    longest_first = sorted(contents, key=lambda content: (-len(content), content))
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


@lru_cache(maxsize=4)
def _loosely(control: frozenset[str]) -> re.Pattern[str]:
    """Control tokens in any case, and with white space between their characters."""
    spellings = (r"\s*".join(map(re.escape, content)) for content in sorted(control) if not re.search(r"\s", content))
    return re.compile("|".join(spellings) or "(?!)", re.IGNORECASE)


def is_piece(text: str, composed: frozenset[str]) -> bool:
    """Whether a text, but for the white space around it, is a part of one of these control tokens."""
    core = text.strip()
    return bool(core) and any(core in content for content in composed)


@lru_cache(maxsize=4)
def _parts(control: frozenset[str]) -> tuple[frozenset[str], frozenset[str]]:
    """What control tokens begin with, and what they end with, short of a whole one."""
    cuts = [(content[:i], content[i:]) for content in control for i in range(1, len(content))]
    return frozenset(begin for begin, _ in cuts), frozenset(end for _, end in cuts)


def read_as_text(tokenizer: Any, rendered: Unmarked, tokens: ControlTokens, stand_in: str) -> list[int] | None:
    """The tokens of a rendered text in which the template's own control tokens alone are read as such.

    Args:
        tokenizer: of transformers, with a backend of tokenizers.
        rendered: with its marks taken off.
        tokens: the tokenizer's.
        stand_in: a character that is not in the text.

    Returns:
        None where the text has no others: then every tokenizer reads it right.

    Raises:
        NotReadable: this tokenizer has no backend of its own, or makes a control token of plain text.
    """
    spelled = [match for match in tokens.spelled(rendered.text) if match[0] in tokens.control]
    own = [match for match in spelled if not rendered.is_from_prompt(*match.span())]
    if len(own) == len(spelled):
        return None
    reader = _reader(tokenizer, tokens.control, stand_in)
    pieces, at = [], 0
    for match in own:
        pieces += [rendered.text[at : match.start()], reader.stand_ins[match[0]]]
        at = match.end()
    read = reader.encode("".join([*pieces, rendered.text[at:]]))
    controls = {tokens.added[content] for content in tokens.control}
    if [token for token in read if token in controls] != [tokens.added[match[0]] for match in own]:
        raise NotReadable("this tokenizer makes control tokens of plain text")
    return read


@dataclass(frozen=True)
class _Reader:
    """A tokenizer that knows stand-ins in the place of control tokens."""

    backend: Tokenizer
    stand_ins: Mapping[str, str]
    original: Mapping[int, int]

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, as the original tokenizer numbers them."""
        return [self.original.get(i, i) for i in self.backend.encode(text, add_special_tokens=False).ids]


@lru_cache(maxsize=4)
def _reader(tokenizer: Any, control: frozenset[str], stand_in: str) -> _Reader:
    from tokenizers import Tokenizer

    if not _reads_by_backend(tokenizer):
        raise NotReadable(f"a {type(tokenizer).__name__} cannot read them as text")
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    stand_ins, original = {}, {}
    for number, token in enumerate(description["added_tokens"]):
        if token["content"] in control:
            stand_ins[token["content"]] = token["content"] = f"{stand_in}{number}{stand_in}"
        original[token["content"]] = token["id"]
    backend = Tokenizer.from_str(json.dumps(description))
    backend.no_truncation()
    backend.no_padding()
    names = backend.get_vocab(with_added_tokens=True)
    return _Reader(backend, stand_ins, {names[content]: i for content, i in original.items()})


def _reads_by_backend(tokenizer: Any) -> bool:
    """Whether the tokens are what the backend makes of the very text."""
    from tokenizers import Tokenizer

    defines = next(kind for kind in type(tokenizer).__mro__ if "encode" in vars(kind))
    return defines.__module__.startswith("transformers.") and isinstance(
        getattr(tokenizer, "backend_tokenizer", None), Tokenizer
    )
