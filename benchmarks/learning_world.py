"""The texts of the learning benchmark: failures, validation, replay and reported ones, made by the target of a pair.

Prompts to learn from are openings of modules that no model of the embedded pair has read; the reported ones are of
other modules, and none begins like one of that pair's benchmark prompts, which the recipes were developed on. Openings
that begin alike stay on one side of training and validation. The texts are kept in a folder, so that every recipe, size
and seed works on the same.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from draftloop import reference
from draftloop.config import Rule
from draftloop.data.records import Sampler
from draftloop.models.pair import Pair
from draftloop.prompts.files import read_prompts
from draftloop.reference import Domain
from draftloop.store.atomic import write_atomically
from draftloop.training.dataset.examples import Example, from_json
from draftloop.training.dataset.on_policy import sample_outputs

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the pair's own texts are no part of the package
from scripts.reference_pair.corpus import documents
from scripts.reference_pair.openings import openings

CEILING_FAILURES = 4_000  # twenty times two hundred
_SAME_BEGINNING = 5  # words
_LEARNED_FROM = ("failures", "validation", "replay")


@dataclass(frozen=True)
class Size:
    """How much text there is; the defaults are those of the embedded pair.

    Attributes:
        tokens: the most that the target generates after a prompt.
        failures: of which the seeds draw.
        validation: texts that rates and weights are chosen on.
        replayed: texts of the draft's own domain that replay is drawn from.
        reported: texts of each domain; a few fewer where a prompt is among those that are learned from.
    """

    tokens: int = 32
    failures: int = 1_000
    validation: int = 60
    replayed: int = 300
    reported: int = 150


@dataclass(frozen=True)
class World:
    """Texts of one temperature; failures are of the weak domain, replay of the draft's own."""

    failures: list[Example]
    validation: list[Example]
    replay: list[Example]
    reported: dict[Domain, list[Example]]


def world(pair: Pair, temperature: float, folder: Path, size: Size) -> World:
    """The texts, made once and kept."""
    path = folder / f"texts-{temperature:g}.json"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        made = _made(pair, temperature, size)
        write_atomically(path, orjson.dumps(made))
    found = {name: from_json(texts) for name, texts in orjson.loads(path.read_bytes()).items()}
    others = {_prompt(text) for name in _LEARNED_FROM for text in found[name]}
    reported = {
        domain: [text for text in found[f"reported {domain}"] if _prompt(text) not in others]
        for domain in reference.DOMAINS
    }
    return World(found["failures"], found["validation"], found["replay"], reported)


def _prompt(text: Example) -> tuple[int, ...]:
    return text.ids[: text.prompt_length]


def more_failures(pair: Pair, temperature: float, folder: Path, size: Size, count: int) -> list[Example]:
    """For the ceiling: the prompts of all failures, answered again and again until there are so many texts."""
    path = folder / f"ceiling-{temperature:g}.json"
    if not path.is_file():
        failures = world(pair, temperature, folder, size).failures
        texts = [*failures, *_answered(pair, failures, -(-count // len(failures)) - 1, seed=9)]
        write_atomically(path, orjson.dumps(texts[:count]))
    return from_json(orjson.loads(path.read_bytes()))


def _made(pair: Pair, temperature: float, size: Size) -> dict[str, list[Example]]:
    prose = _openings(reference.WEAK_DOMAIN, size.validation + size.failures, size.validation)
    code = _openings(reference.OWN_DOMAIN, size.replayed, size.validation)
    validation, failures = prose[: size.validation], prose[size.validation :]
    parts = {"failures": failures, "validation": validation, "replay": code}
    for domain in reference.DOMAINS:
        parts[f"reported {domain}"] = _reported(domain, size.reported)
    return {
        name: _answered(pair, _asked(pair, texts, name, temperature, size.tokens), 1) for name, texts in parts.items()
    }


def _asked(pair: Pair, texts: list[str], name: str, temperature: float, tokens: int) -> list[Example]:
    """Prompts as examples of as many tokens as are to be generated."""
    source = reference.OWN_DOMAIN if name in ("replay", f"reported {reference.OWN_DOMAIN}") else reference.WEAK_DOMAIN
    found = []
    for number, text in enumerate(texts):
        ids = tuple(pair.tokenizer.encode(text))
        sampler = Sampler(temperature, 1.0, 0.0, 0, 0)
        rule: Rule = "greedy" if temperature == 0 else "rejection"
        found.append(Example(f"{name}-{number}", source, ids + (0,) * tokens, len(ids), sampler, rule))
    return found


def _answered(pair: Pair, asked: list[Example], times: int, seed: int = 1) -> list[Example]:
    return sample_outputs(
        pair,
        asked,
        times,
        own=False,
        seed=seed,
        enough=lambda: False,
        on_sample=lambda *_: None,
    )


def distinct_openings(pair: Pair, texts: Sequence[Example]) -> int:
    """Prompts that begin differently: several are one sentence, cut here and there."""
    return len({_beginning(pair.tokenizer.decode(list(text.ids[: text.prompt_length]))) for text in texts})


def _beginning(text: str) -> str:
    return " ".join(text.split()[:_SAME_BEGINNING])


def _reported(domain: Domain, count: int) -> list[str]:
    """Prompts of the modules that benchmarks are made of, none like one of the embedded pair's benchmark prompts."""
    known = {_beginning(prompt.text) for prompt in read_prompts(reference.prompts_file(domain, "benchmark"))}
    fresh: dict[str, str] = {}
    found = documents()
    for turn in range(6):
        for text in openings(found, domain, "benchmark", random.Random(f"learning/reported/{domain}/{turn}")):
            if _beginning(text) not in known:
                fresh.setdefault(_beginning(text), text)
    return random.Random(f"learning/reported/{domain}").sample(sorted(fresh.values()), count)


def _openings(domain: Domain, count: int, validation: int) -> list[str]:
    """Distinct prompts; the first `validation` begin like no other, and those that do come far from one another."""
    by_beginning: dict[str, list[str]] = {}
    found = documents()
    for turn in range(6):
        rng = random.Random(f"learning/{domain}/{turn}")
        for text in openings(found, domain, "collect", rng):
            alike = by_beginning.setdefault(_beginning(text), [])
            if text not in alike:
                alike.append(text)
    families = list(by_beginning.values())
    random.Random(f"learning/{domain}").shuffle(families)
    held_out = [family[0] for family in families[:validation]]  # no other of these families is ever used
    rest = families[validation:]
    turns = max(map(len, rest))
    others = [family[turn] for turn in range(turns) for family in rest if turn < len(family)]
    chosen = [*held_out, *others][:count]
    if len(chosen) < count:
        raise ValueError(f"{domain}: {len(chosen)} distinct prompts found, {count} needed")
    return chosen
