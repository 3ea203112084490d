"""The same prompt in other words: it keeps its split, counts once, and in two splits it is used in neither."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from builders import NO_SYNC, make_record
from fault_table import Row
from near_pairs import DIFFERENT_CHECKING, DIFFERENT_TUNING, NEAR_CHECKING, NEAR_TUNING, Pair
from workshop import Workshop, records_of

from draftloop.data.joined_groups import joined_groups
from draftloop.data.log import FailureLog
from draftloop.data.prompt_groups import prompt_group
from draftloop.data.record_lines import to_line
from draftloop.data.records import Record, Split
from draftloop.data.usable import NEAR_TWO_SPLITS
from draftloop.evaluation.looks import new_outputs
from draftloop.status import read_overview
from draftloop.training.dataset.mixture import gather

pytestmark = pytest.mark.row("the same prompt in other words")

ANIMALS = "lion eagle shark beetle salmon turtle gorilla falcon lizard rabbit pigeon walrus"
TOPICS = [
    f"Describe the {part} of a {animal}" for animal in ANIMALS.split() for part in ("diet", "sleep", "eyes", "nest")
]


def in_other_words(prompt: str, choose: random.Random) -> str:
    """A near-duplicate as people write them."""
    prompt = choose.choice(["{}", "Please {}", "Can you {}", "Hi! {}", "could you kindly {}", "'{}'"]).format(prompt)
    prompt += choose.choice(["", ".", "!", "?", " ...", ", please", " - thanks!", " ?!"])
    prompt = choose.choice([str, str.upper, str.lower])(prompt)
    return prompt.replace("describe", "desribe") if choose.random() < 0.2 else prompt


def share(pairs: list[Pair]) -> float:
    return sum(len(set(joined_groups(pair))) == 1 for pair in pairs) / len(pairs)


@pytest.mark.parametrize("pairs", [NEAR_TUNING, NEAR_CHECKING], ids=["tuning", "checking"])
def test_near_duplicates_are_joined(pairs: list[Pair], row: Row) -> None:
    assert share(pairs) >= 0.90
    row.did(len(pairs), "pairs of near-duplicates")


@pytest.mark.parametrize("pairs", [DIFFERENT_TUNING, DIFFERENT_CHECKING], ids=["tuning", "checking"])
def test_different_prompts_of_one_template_are_not(pairs: list[Pair], row: Row) -> None:
    assert share(pairs) <= 0.02
    row.did(len(pairs), "pairs of one template")


def test_no_variant_of_a_held_out_prompt_trains(tmp_path: Path, row: Row) -> None:
    choose, count = random.Random(3), row.count(6, 200)
    log = FailureLog(tmp_path / "failures.jsonl", NO_SYNC)
    first = {topic: log.append(make_record(prompt=topic)).split for topic in TOPICS}
    variants = [(topic, in_other_words(topic, choose)) for topic in TOPICS for _ in range(count)]
    choose.shuffle(variants)
    placed = FailureLog(log.path, NO_SYNC).extend(make_record(prompt=variant) for _, variant in variants)
    assert [record.split for record in placed] == [first[topic] for topic, _ in variants]
    assert log.groups().groups_in_two_splits == 0
    assert len({log.groups().group_of(record) for record in placed}) == len(TOPICS)
    assert len({record.group for record in placed}) > 1.5 * len(TOPICS)  # or there was nothing to join
    row.did(sum(record.split == "heldout" for record in placed), "variants of held-out prompts")


def test_twelve_punctuations_of_one_prompt_are_one_prompt_to_the_gate(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path, {}, NO_SYNC)
    ends = ["", ".", "?", "!", "...", "?!", " ?", "!!", ":", ";", " -", "\u2026"]
    workshop.write([make_record(prompt=f"Please describe the eyes of a lion{end}", split="heldout") for end in ends])
    assert len(read_overview(workshop.data).heldout_prompts) == 1


def old_log(shop: Workshop) -> tuple[list[Record], list[Record]]:
    """What an earlier version wrote: prompts of their own in every split, and near-duplicates in two; returns both."""
    made = iter(records_of(shop.pair, 30, seed=5))

    def of(split: Split, prompts: list[str]) -> Iterator[Record]:
        return (replace(next(made), prompt=prompt, split=split) for prompt in prompts)

    apart = [*of("train", TOPICS[:8]), *of("validation", TOPICS[8:10]), *of("heldout", TOPICS[10:14])]
    choose = random.Random(0)
    left, right = TOPICS[20:24], [in_other_words(topic, choose) for topic in TOPICS[20:24]]
    near = [*of("train", left), *of("heldout", right[:3]), *of("validation", right[3:])]
    shop.write([*apart[:7], *near, *apart[7:]])
    return apart, near


def test_what_is_near_two_splits_is_used_in_neither_and_counted(tmp_path: Path, row: Row) -> None:
    shop = Workshop(tmp_path, {"epochs": 1}, NO_SYNC)
    apart, near = old_log(shop)
    before = shop.log.path.read_bytes()
    ids = {record.id for record in near}
    for split in ("train", "validation", "heldout"):
        expected = [record.id for record in apart if record.split == split]
        assert [record.id for record in shop.log.records({split})] == expected
    assert [record.id for record in shop.log.records()] == [r.id for r in [*apart[:7], *near, *apart[7:]]]
    found = read_overview(shop.data)
    assert (found.near_two_splits, found.failures_near_two_splits) == (8, 8)
    assert (found.failures, found.failures_new, len(found.heldout_prompts)) == (22, 8, 4)
    assert {one.id for one in found.stream if one.split is None} == ids
    assert not ids & {one.id for one in new_outputs(found.stream, ())}
    result = shop.train()
    assert not ids & set(shop.registry.manifest(result.version).record_ids)
    assert not ids & {record.id for record in shop.replay.records()}
    assert gather(shop.log, shop.replay, shop.pair, shop.config).left_out[NEAR_TWO_SPLITS] == 5
    assert shop.log.path.read_bytes() == before
    row.did(len(near), "records near two splits, used in neither")


def test_what_an_earlier_training_remembered_is_not_replayed_beside_a_held_out_sister(tmp_path: Path) -> None:
    shop = Workshop(tmp_path, {}, NO_SYNC)
    apart, _ = old_log(shop)
    sister = next(record for record in apart if record.split == "heldout")
    remembered = [
        replace(record, prompt=prompt, source="lost")
        for record, prompt in zip(records_of(shop.pair, 2, seed=9), [f"Please {sister.prompt}!", "count"], strict=True)
    ]
    shop.replay.remember(remembered, 0)
    pool = gather(shop.log, shop.replay, shop.pair, shop.config).pool.ids
    assert remembered[1].id in pool
    assert remembered[0].id not in pool


def test_a_prompt_between_two_splits_takes_both_out_as_soon_as_it_comes(tmp_path: Path) -> None:
    log = FailureLog(tmp_path / "failures.jsonl", NO_SYNC)
    log.path.write_bytes(
        to_line(make_record(prompt="Describe the Mercuri and Jupiter probes", split="train"))
        + to_line(make_record(prompt="Describe the Mercury and Jupitre probes", split="heldout"))
    )
    assert len(list(log.records({"heldout"}))) == 1
    log.append(make_record(prompt="Describe the Mercury and Jupiter probes"))
    assert list(log.records({"train"})) == list(log.records({"heldout"})) == []
    assert log.near_two_splits == 1


def test_turns_of_one_conversation_stay_together(tmp_path: Path) -> None:
    log = FailureLog(tmp_path / "failures.jsonl", NO_SYNC)
    system = {"role": "system", "content": "You are a zoologist. " * 30}
    for topic in TOPICS:
        turns: list[dict[str, str]] = [
            system,
            {"role": "user", "content": "Hello!"},
            {"role": "user", "content": topic},
        ]
        splits = set()
        for more in ("And of its cousin?", "Shorter, please", f"Unlike {topic}?"):
            splits.add(log.append(make_record(prompt=more, messages=tuple(turns))).split)
            turns = [*turns, {"role": "assistant", "content": "Well."}, {"role": "user", "content": more}]
        assert len(splits) == 1
    assert len({log.groups().group_of(record) for record in log.records()}) == len(TOPICS)
    assert {record.split for record in log.records()} == {"train", "validation", "heldout"}


def test_a_log_that_looked_at_groups_by_themselves_would_leak(tmp_path: Path) -> None:
    """The broken version: what the tests above catch."""
    choose = random.Random(3)
    variants = {prompt_group(in_other_words(topic, choose)) for topic in TOPICS for _ in range(6)}
    assert len(variants) > 1.5 * len(TOPICS)
