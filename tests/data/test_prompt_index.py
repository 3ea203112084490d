"""The index of prompts: it says what it was told, or that it is damaged, and it holds no prompt."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import orjson
import pytest
from builders import NO_SYNC

from draftloop.data import prompt_index as module
from draftloop.data.prompt_groups import near_keys, prompt_group
from draftloop.data.prompt_index import KnownPrompt, PromptIndex
from draftloop.errors import StoreError
from draftloop.store.sealed import DamagedFile
from draftloop.store.sealed_lines import seal, unseal

PYTHON = "What is the Python programming language?"
KNOWN = [
    KnownPrompt(prompt_group(PYTHON), ("heldout",), near_keys(PYTHON)),
    KnownPrompt(prompt_group("???"), ("train", "validation"), (), dropped=True),
    KnownPrompt("0" * 16, ("train",), None),
]


@pytest.fixture
def index(tmp_path: Path) -> PromptIndex:
    return PromptIndex(tmp_path / "failures.jsonl.prompts", NO_SYNC)


def write(index: PromptIndex, prompts: Iterable[KnownPrompt]) -> None:
    with index.next_file(prompts) as following:
        index.publish(following)


def test_one_that_is_not_there_knows_nothing_and_reading_makes_nothing(index: PromptIndex) -> None:
    assert (index.prompts(), index.compactions(), index.size) == ([], 0, 0)
    assert not index.path.exists()


def test_what_is_written_is_read_in_its_order_and_each_writing_counts(index: PromptIndex) -> None:
    for count, prompts in enumerate((KNOWN, KNOWN[::-1], []), 1):
        expected = index.size_with(prompts)
        write(index, iter(prompts))
        assert (index.prompts(), index.compactions(), index.size) == (prompts, count, expected)
    assert index.path.stat().st_mode & 0o777 == 0o600


def test_what_is_not_published_changes_nothing_and_leaves_nothing(index: PromptIndex) -> None:
    write(index, KNOWN)
    with index.next_file([]):
        assert (index.prompts(), index.compactions()) == (KNOWN, 1)
    assert list(index.path.parent.iterdir()) == [index.path]


def test_no_word_of_a_prompt_is_in_it(index: PromptIndex) -> None:
    write(index, KNOWN)
    content = index.path.read_bytes().lower()
    assert not any(word.encode() in content for word in ("python", "programming", "language"))


def test_every_flipped_bit_is_seen(index: PromptIndex) -> None:
    write(index, KNOWN)
    whole = index.path.read_bytes()
    for bit in range(0, len(whole) * 8, 7):  # some of every byte
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        index.path.write_bytes(damaged)
        with pytest.raises(DamagedFile, match="Restore it; or delete it"):
            index.prompts()


def test_of_keys_by_other_rules_only_the_names_are_known(index: PromptIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    write(index, KNOWN)
    monkeypatch.setattr(module, "KEYS", module.KEYS + 1)
    found = index.prompts()
    assert [(one.group, one.splits, one.dropped) for one in found] == [(o.group, o.splits, o.dropped) for o in KNOWN]
    assert {one.keys for one in found} == {None}


def test_one_of_a_newer_draftloop_is_refused(index: PromptIndex) -> None:
    write(index, KNOWN)
    first, _, rest = index.path.read_bytes().partition(b"\n")
    index.path.write_bytes(seal(orjson.dumps({**orjson.loads(unseal(first)), "schema": 2})) + rest)
    for attempt in (index.prompts, index.compactions):
        with pytest.raises(StoreError, match="schema 2"):
            attempt()
