"""The overlay: near-duplicates joined whatever the order of the lines, and a split for each that is fixed once."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from builders import make_record
from near_pairs import NEAR_TUNING

from draftloop.data import joined_groups as module
from draftloop.data.joined_groups import PromptGroups
from draftloop.data.prompt_groups import near_keys, prompt_group
from draftloop.data.prompt_index import KnownPrompt
from draftloop.data.records import Split
from draftloop.data.splits import hashed_split

TOPICS = [f"a prompt about the letter {chr(97 + i % 26)} and {chr(0x4E00 + i)}" for i in range(4000)]
HELD_OUT = [topic for topic in TOPICS if hashed_split(prompt_group(topic)) == "heldout"]
PYTHON = "What is the Python programming language?"
VARIANTS = [
    "Please, what is the Python programming language",
    "what's the Pyhton programming language!",
    PYTHON.upper(),
]


def ten_others() -> PromptGroups:
    found = PromptGroups()
    for topic in TOPICS[:10]:
        found.learn(topic, "train")
    return found


def test_the_first_ten_groups_train_and_the_eleventh_goes_by_its_hash() -> None:
    groups = PromptGroups()
    for topic in HELD_OUT[:10]:
        assert groups.splits_for([topic])[0] == "train"
        groups.learn(topic, "train")
    assert groups.splits_for([HELD_OUT[10]])[0] == "heldout"


def test_near_duplicates_count_as_one_of_the_first_ten() -> None:
    groups = PromptGroups()
    for prompt in [PYTHON, *VARIANTS]:
        groups.learn(prompt, "train")
    for topic in HELD_OUT[:9]:
        groups.learn(topic, "train")
    assert groups.splits_for([HELD_OUT[10]])[0] == "heldout"
    assert PromptGroups().splits_for([PYTHON, *VARIANTS, *HELD_OUT[:10]])[-2:] == ["train", "heldout"]


def test_a_group_keeps_the_split_of_its_first_line() -> None:
    groups = ten_others()
    groups.learn(PYTHON, "heldout")
    groups.learn(PYTHON, "train")
    assert groups.splits_for([PYTHON])[0] == "heldout"


@pytest.mark.parametrize("split", ["train", "validation", "heldout"])
def test_a_prompt_goes_where_what_it_is_near_to_went(split: Split) -> None:
    groups = ten_others()
    groups.learn(PYTHON, split)
    assert groups.splits_for(VARIANTS) == [split] * 3


def test_prompts_of_one_batch_that_are_near_go_together() -> None:
    variants = [f"{start} {PYTHON}" for start in ("", "Please,", "Hi!", "Hello,", "Can you tell me:", "Kindly:", "So")]
    assert len({hashed_split(prompt_group(prompt)) for prompt in variants}) > 1  # or one that looks at hashes would do
    assert len(set(ten_others().splits_for(variants))) == 1


def test_asking_fixes_nothing() -> None:
    groups = PromptGroups()
    for topic in TOPICS[:100]:
        assert groups.splits_for([topic])[0] == "train"


def test_what_is_joined_does_not_depend_on_the_order() -> None:
    prompts = [prompt for pair in NEAR_TUNING for prompt in pair]
    names = []
    for seed in range(5):
        random.Random(seed).shuffle(prompts)
        groups = PromptGroups()
        for prompt in prompts:
            groups.learn(prompt, "train")
        names.append({prompt: groups.joined(prompt_group(prompt)) for prompt in prompts})
    assert all(found == names[0] for found in names)
    assert len(set(names[0].values())) < len({prompt_group(prompt) for prompt in prompts})


def test_a_prompt_that_was_not_met_is_its_own_group() -> None:
    record = make_record(prompt=PYTHON)
    assert ten_others().group_of(record) == record.group
    assert ten_others().splits_near(record) == set()


def test_what_is_near_two_splits_is_known_and_nothing_else_is() -> None:
    groups = ten_others()
    groups.learn(PYTHON, "train")
    groups.learn(VARIANTS[0], "train")
    assert groups.groups_in_two_splits == 0
    groups.learn(VARIANTS[1], "heldout")
    assert groups.groups_in_two_splits == 1
    assert all(groups.in_two_splits(make_record(prompt=prompt)) for prompt in [PYTHON, *VARIANTS])
    assert not any(groups.in_two_splits(make_record(prompt=topic)) for topic in TOPICS[:20])


def test_a_prompt_between_two_others_joins_them() -> None:
    left, between, right = ("Compare Mercury with its neighbour Jupiter" for _ in range(3))
    left, right = left.replace("Mercury", "Mercuri"), right.replace("Jupiter", "Jupitre")
    groups = ten_others()
    groups.learn(left, "train")
    groups.learn(right, "heldout")
    assert groups.groups_in_two_splits == 0
    assert groups.splits_near(make_record(prompt=between)) == {"train", "heldout"}
    groups.learn(between, groups.splits_for([between])[0])
    assert groups.groups_in_two_splits == 1


def test_many_keys_are_found_again_once_they_have_left_the_dict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RECENT", 50)
    groups = ten_others()
    groups.learn(PYTHON, "heldout")
    for topic in TOPICS:
        groups.learn(topic, "train")
    assert groups.splits_for(VARIANTS) == ["heldout"] * 3
    groups.learn(VARIANTS[1], "heldout")
    assert len({groups.joined(prompt_group(prompt)) for prompt in (PYTHON, VARIANTS[1])}) == 1


def test_the_hash_gives_seventy_ten_twenty() -> None:
    shares = Counter(hashed_split(prompt_group(topic)) for topic in TOPICS)
    # four standard deviations of a binomial over 4,000
    assert abs(shares["train"] / 4000 - 0.70) < 0.029
    assert abs(shares["validation"] / 4000 - 0.10) < 0.019
    assert abs(shares["heldout"] / 4000 - 0.20) < 0.026


def test_the_hash_never_changes() -> None:
    assert "".join(hashed_split(f"{i:016x}")[0] for i in range(24)) == "thtvhtttvttththttttthhvt"


def test_what_was_trained_on_by_name_is_near_to_others_as_soon_as_its_text_is_learnt() -> None:
    """A manifest names a group before the log, which has the prompt, is read."""
    groups = PromptGroups()
    groups.learn_trained(prompt_group(PYTHON))
    assert (groups.all_have_text, groups.has_text(prompt_group(PYTHON))) == (False, False)
    assert groups.splits_near(make_record(prompt=VARIANTS[0])) == set()
    groups.learn(PYTHON, "train")
    assert (groups.all_have_text, groups.has_text(prompt_group(PYTHON))) == (True, True)
    for variant in VARIANTS:
        assert groups.splits_for([variant])[0] == "train"
        assert groups.splits_near(make_record(prompt=variant)) == {"train"}


def test_the_groups_near_a_prompt_are_joined_ones_and_its_own() -> None:
    groups = PromptGroups()
    alone = make_record(prompt="pears")
    assert groups.groups_near(alone) == {prompt_group("pears")}
    groups.learn(PYTHON, "train")
    groups.learn(VARIANTS[0], "train")
    near = groups.groups_near(make_record(prompt=VARIANTS[1]))
    assert near == {groups.joined(prompt_group(PYTHON)), prompt_group(VARIANTS[1])}


def test_what_the_index_knows_is_learnt_as_from_the_lines() -> None:
    prompts = [prompt for pair in NEAR_TUNING for prompt in pair]
    lines, index = PromptGroups(), PromptGroups()
    for number, prompt in enumerate(prompts):
        split: Split = ("train", "validation", "heldout")[number % 3]
        group = lines.learn(prompt, split)
        index.learn_known(KnownPrompt(group, (split,), near_keys(prompt)))
    others = [*VARIANTS, *TOPICS[:20], *(f"please, {prompt}" for prompt in prompts)]
    assert index.splits_for(others) == lines.splits_for(others)
    assert index.groups_in_two_splits == lines.groups_in_two_splits > 0
    for prompt in others:
        record = make_record(prompt=prompt)
        assert index.groups_near(record) == lines.groups_near(record)
        assert index.splits_near(record) == lines.splits_near(record)


def test_of_a_group_without_keys_the_name_and_the_split_are_known() -> None:
    groups = ten_others()
    groups.learn_known(KnownPrompt(prompt_group(PYTHON), ("heldout",), None))
    assert not groups.has_text(prompt_group(PYTHON))
    assert groups.splits_for([PYTHON.upper()]) == ["heldout"]
    groups.learn(PYTHON, "heldout")
    assert groups.splits_for(VARIANTS) == ["heldout"] * 3


def test_what_is_joined_with_a_group_that_lost_lines_lost_them_too() -> None:
    groups = ten_others()
    groups.learn(VARIANTS[0], "heldout")
    assert not groups.has_dropped(prompt_group(VARIANTS[0]))
    groups.learn_known(KnownPrompt(prompt_group(PYTHON), ("heldout",), near_keys(PYTHON), dropped=True))
    groups.learn(VARIANTS[1], "heldout")
    assert all(groups.has_dropped(prompt_group(prompt)) for prompt in (PYTHON, *VARIANTS))
    assert not groups.has_dropped(prompt_group(TOPICS[0]))
