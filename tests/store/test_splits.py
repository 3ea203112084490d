"""A prompt group's split: fixed once, seventy-ten-twenty in the long run."""

from __future__ import annotations

from collections import Counter

from draftloop.records import Split, prompt_group
from draftloop.store.splits import Splits, hashed_split

GROUPS = [prompt_group(f"a prompt about the letter {chr(97 + i % 26)} and {chr(0x4E00 + i)}") for i in range(4000)]


def test_the_first_ten_groups_train_and_the_eleventh_goes_by_its_hash() -> None:
    splits = Splits()
    heldout = [group for group in GROUPS if hashed_split(group) == "heldout"]
    for group in heldout[:10]:
        assert splits.split_for(group) == "train"
        splits.learn(group, "train")
    assert splits.split_for(heldout[10]) == "heldout"


def test_a_group_keeps_the_split_of_its_first_record() -> None:
    splits = Splits()
    fixed: list[Split] = ["heldout", "train"]
    for split in fixed:
        splits.learn("g", split)
    for group in GROUPS[:50]:
        splits.learn(group, "train")
    assert splits.split_for("g") == "heldout"


def test_asking_fixes_nothing() -> None:
    splits = Splits()
    for group in GROUPS[:100]:
        assert splits.split_for(group) == "train"


def test_the_hash_gives_seventy_ten_twenty() -> None:
    shares = Counter(hashed_split(group) for group in GROUPS)
    # four standard deviations of a binomial over 4,000
    assert abs(shares["train"] / 4000 - 0.70) < 0.029
    assert abs(shares["validation"] / 4000 - 0.10) < 0.019
    assert abs(shares["heldout"] / 4000 - 0.20) < 0.026


def test_the_hash_never_changes() -> None:
    assert "".join(hashed_split(f"{i:016x}")[0] for i in range(24)) == "thtvhtttvttththttttthhvt"
