"""Evaluation is blind: a prompt has one split for ever, and training cannot tell whether held-out records are there."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from builders import NO_SYNC, make_record
from fault_table import Row
from workshop import Workshop, records_of

from draftloop.data.log import FailureLog
from draftloop.data.record_lines import to_line
from draftloop.data.records import Record
from draftloop.training.dataset.mixture import gather

pytestmark = pytest.mark.row("leakage")

TOPICS = [f"what is {a} {b}" for a in ("red", "dog", "straße", "ﬁre") for b in ("tea", "and 7", "ⅷ", "x" * 50)]


def disguised(prompt: str, choose: random.Random) -> str:
    """The same prompt group in other words: case, spaces, digits, compatibility forms."""
    prompt = choose.choice([str.upper, str.lower, str.title, str])(prompt)
    prompt = prompt.replace("7", str(choose.randrange(10_000)))
    prompt = choose.choice(["", " ", "\n"]) + choose.choice(["  ", "\t", "\u00a0", " "]).join(prompt.split(" "))
    return "".join(chr(ord(c) + 0xFEE0) if choose.random() < 0.1 and "!" <= c <= "~" else c for c in prompt)


def met_again(number: int, choose: random.Random) -> tuple[str, Record]:
    """A topic that came before, or not, and a record of it: in other words, by another source, champion, split."""
    topic = choose.choice(TOPICS) + chr(0x4E00 + choose.randrange(number // 40 + 1))
    record = make_record(
        prompt=disguised(topic, choose),
        split=choose.choice(["train", "validation", "heldout"]),
        source=choose.choice(["docs", "code", "chat"]),
        adapter=choose.choice([None, "v0001", "v0002"]),
        run_seed=number,
    )
    return topic, replace(record, rule="match") if choose.random() < 0.3 else record


def test_a_prompt_met_again_in_any_guise_stays_in_its_split(tmp_path: Path, row: Row) -> None:
    choose, count = random.Random(1), row.count(300, 10_000)
    path = tmp_path / "failures.jsonl"
    writers = [FailureLog(path, NO_SYNC), FailureLog(path, NO_SYNC)]
    topics: dict[str, str] = {}
    for number in range(count):
        topic, record = met_again(number, choose)
        topics[choose.choice(writers).append(record).id] = topic
    splits: defaultdict[str, set[str]] = defaultdict(set)
    for record in FailureLog(path).records():
        splits[topics[record.id]].add(record.split)
    assert {len(found) for found in splits.values()} == {1}
    assert len(splits) < 0.6 * count  # or nothing was met again
    assert {split for found in splits.values() for split in found} == {"train", "validation", "heldout"}
    row.did(count, "records of prompts met again")
    row.did(0, "overlaps")


def test_a_group_would_be_split_by_a_log_that_believed_the_records(tmp_path: Path) -> None:
    """The broken version that the test above must catch."""
    choose, splits = random.Random(1), defaultdict(set)
    for number in range(300):
        topic, record = met_again(number, choose)
        splits[topic].add(record.split)
    assert max(len(found) for found in splits.values()) > 1


def workshop(root: Path, seed: int) -> Workshop:
    settings = {"epochs": 2, "batch_size": 4, "learning_rate": 5e-3, "seed": seed, "lora": {"dropout": 0.1}}
    return Workshop(root, settings, NO_SYNC)


@pytest.mark.usefixtures("on_the_cpu")
def test_training_gives_the_same_weights_bit_for_bit_without_the_held_out_records(tmp_path: Path, row: Row) -> None:
    for seed in range(row.count(1, 10)):
        whole, blind = workshop(tmp_path / f"whole {seed}", seed), workshop(tmp_path / f"blind {seed}", seed)
        pair = whole.pair
        seen = [*records_of(pair, 10, seed=seed), *records_of(pair, 2, seed=seed, split="validation")]
        heldout = records_of(pair, 8, seed=100 + seed, split="heldout")
        mixed = [*seen, *heldout]
        random.Random(seed).shuffle(mixed)
        whole.write(mixed)
        blind.write([record for record in mixed if record.split != "heldout"])
        names = ("adapters.safetensors", "adapter_config.json")
        results = [shop.train() for shop in (whole, blind)]
        one, other = ([(Path(result.path) / name).read_bytes() for name in names] for result in results)
        assert one == other
        _never_met(whole, {record.id for record in heldout}, Path(results[0].run_path))
        row.did(1, "trainings with and without the held-out records")


def _never_met(shop: Workshop, heldout: set[str], run: Path) -> None:
    """No held-out record is in what was trained on, validated on, replayed, or remembered."""
    material = orjson.loads((run / "material.json").read_bytes())
    assert not heldout & {found for part in ("failures", "replay_pool", "validation") for found in material[part]}
    assert not heldout & {record.id for record in shop.replay.records()}
    assert not heldout & set(shop.registry.manifest("v0001").record_ids)
    assert not heldout & set(gather(shop.log, shop.replay, shop.pair, shop.config).failures.ids)


def test_training_would_notice_held_out_records_if_it_read_them(tmp_path: Path) -> None:
    """The same records with another split change the weights: the comparison above can fail."""
    blind, leaky = workshop(tmp_path / "blind", 0), workshop(tmp_path / "leaky", 0)
    seen = records_of(blind.pair, 10)
    blind.write(seen)
    leaky.write([*seen, *records_of(blind.pair, 8, seed=100)])
    weights = [(Path(shop.train().path) / "adapters.safetensors").read_bytes() for shop in (blind, leaky)]
    assert weights[0] != weights[1]


def test_a_split_is_read_from_the_log_and_a_damaged_line_changes_no_other_prompts_split(tmp_path: Path) -> None:
    """A prompt whose first record was damaged is not moved: its other records say where it belongs."""
    path = tmp_path / "failures.jsonl"
    log = FailureLog(path, NO_SYNC)
    kept = [log.append(make_record(prompt=f"topic {chr(0x4E00 + i)}")) for i in range(30)]
    again = [log.append(make_record(prompt=record.prompt.upper())) for record in kept]
    damaged = bytearray(path.read_bytes())
    damaged[len(to_line(kept[0])) // 2] ^= 1
    path.write_bytes(damaged)
    third = [FailureLog(path, NO_SYNC).append(make_record(prompt=record.prompt)) for record in kept]
    assert [record.split for record in third] == [record.split for record in again] == [record.split for record in kept]
