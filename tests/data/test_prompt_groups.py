"""Which prompts are one group, and which groups are near-duplicates."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from near_pairs import DIFFERENT_CHECKING, DIFFERENT_TUNING, NEAR_CHECKING, NEAR_TUNING, Pair

from draftloop.data.prompt_groups import EXACT_WORDS, KEYS, content_words, near_keys, opening, prompt_group


def near(one: str, other: str) -> bool:
    return prompt_group(one) == prompt_group(other) or not set(near_keys(one)).isdisjoint(near_keys(other))


def joined(pairs: list[Pair]) -> float:
    return sum(near(*pair) for pair in pairs) / len(pairs)


def test_prompts_equal_but_for_case_spaces_digits_and_width_are_one_group() -> None:
    same = ["Add 12 and 7\n", "  add 3  AND\t4000", "ADD \u0663 and 9", "\uff21dd 1 and 2", "add 1 \u00a0and 5"]
    assert len({prompt_group(prompt) for prompt in [*same, "Add 1.5 and 2,000"]}) == 1
    assert prompt_group("stra\u00dfe") == prompt_group("STRASSE")
    assert prompt_group("x\ud800") == prompt_group("x\udfff") == prompt_group("x\ufffd")


def test_twelve_punctuations_of_one_prompt_are_one_group() -> None:
    same = ["", ".", "?", "!", "...", " ?", "?!", "\u2026", " -", "\uff1f", ":", ";"]
    assert len({prompt_group(f"Why don't cats swim{end}") for end in same}) == 1
    quoted = ["Why don\u2019t cats swim", '"Why dont cats swim"', "**Why don't cats swim**", "(Why don't `cats` swim)"]
    assert {prompt_group(prompt) for prompt in quoted} == {prompt_group("Why don't cats swim?")}
    assert prompt_group("soft\u00adware\u200b \u2764\ufe0f") == prompt_group("software \u2764")


def test_other_prompts_are_other_groups() -> None:
    prompts = ["Add 1 and 2", "Add 1 and two", "Add 12", "Add1 and 2", "", "\u05d0", "C", "C++", "C#", "a+b", "a = b"]
    prompts += ["?", "...", "\U0001f600", "\U0001f622", "\u304b", "\u304c", "What is % in C?", "What is & in C?"]
    assert len({prompt_group(prompt) for prompt in prompts}) == len(prompts)


def test_a_group_never_changes_its_name() -> None:
    assert prompt_group("What is Python 3?") == "a0fc9e38fed2c7b7"


@pytest.mark.parametrize("pairs", [NEAR_TUNING, NEAR_CHECKING], ids=["tuning", "checking"])
def test_nine_of_ten_near_duplicates_are_joined(pairs: list[Pair]) -> None:
    assert joined(pairs) >= 0.90


@pytest.mark.parametrize("pairs", [DIFFERENT_TUNING, DIFFERENT_CHECKING], ids=["tuning", "checking"])
def test_hardly_any_different_prompts_of_one_template_are_joined(pairs: list[Pair]) -> None:
    assert joined(pairs) <= 0.02


def test_common_shingles_would_join_the_templates() -> None:
    """The rule that was not taken: at no threshold does it do both."""

    def share(one: str, other: str) -> float:
        a, b = ({text[i : i + 4] for i in range(len(text) - 3)} for text in (one.casefold(), other.casefold()))
        return len(a & b) / max(len(a | b), 1)

    near_pairs, different = ([share(*pair) for pair in pairs] for pairs in (NEAR_TUNING, DIFFERENT_TUNING))
    enough = sorted(near_pairs)[len(near_pairs) // 10]  # joins nine of ten
    assert sum(value >= enough for value in different) > 0.1 * len(different)


def test_what_says_nothing_is_near_to_nothing() -> None:
    for prompt in ("", "Hi!", "Can you help me, please?", "???", "\U0001f600" * 0):
        assert content_words(prompt) == ()
        assert near_keys(prompt) == ()


def test_long_prompts_are_near_with_typos_and_not_with_another_word() -> None:
    text = "The committee discussed funding for libraries, museums, theatres, orchestras, swimming pools and parks "
    text += "before deciding that schools, hospitals and railways deserve priority this winter. Summarise: {}"
    assert len(content_words(text)) > EXACT_WORDS
    assert near(
        text.format("money"), text.format("money").replace("hospitals", "hosptials").replace("winter", "wniter")
    )
    assert not near(text.format("money"), text.format("votes"))


def test_keys_of_a_huge_prompt_are_few() -> None:
    assert len(near_keys("lorem ipsum dolor " * 10_000)) == 1
    assert len(near_keys("pneumonoultramicroscopic " * EXACT_WORDS)) < 1000


def test_a_chat_opens_with_the_first_user_turn_that_says_something() -> None:
    system = {"role": "system", "content": "You are a pirate. " * 50}
    hello = [system, {"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello. Python?"}]
    parts = {"role": "user", "content": [{"type": "text", "text": "What is"}, {"type": "image"}, {"text": "Rust?"}]}
    assert opening("all of it", [*hello, {"role": "user", "content": "What is Rust?"}]) == "What is Rust?"
    assert opening("all of it", [system, parts]) == "What is\nRust?"
    assert opening("all of it", hello) == "Hi!"
    assert opening("all of it", [system, {"role": "user", "content": None}]) == "all of it"
    assert opening("all of it", None) == opening("all of it", []) == opening("all of it", [system]) == "all of it"


def test_two_processes_have_the_same_keys() -> None:
    """Python's own hashes of text are others in each process, and keys are written down."""
    code = "from test_prompt_groups import *; print([near_keys(one) for pair in NEAR_CHECKING for one in pair])"
    said = [
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            env={"PYTHONPATH": ":".join([str(Path(__file__).parent), *sys.path]), "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]
    assert said[0] == said[1]


def test_the_keys_of_a_version_never_change() -> None:
    """Where they do, KEYS has to count up: what is written down would be near to nothing any more."""
    prompts = ("What is Python?", "Please sort a list in Python", "English to French", "lorem ipsum dolor sit " * 9)
    digest = hashlib.sha256(repr([near_keys(prompt) for prompt in prompts]).encode()).hexdigest()[:16]
    assert (KEYS, digest) == (1, "1619b132ac55a33a")
