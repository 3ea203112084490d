"""Two models that do not belong together: refused before anything is generated, the first differing id named."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fault_table import Row
from model_dirs import VOCABULARY, add_token, edit_json, swap_tokens, write_llama
from tiny import sampler

from draftloop.collection.collect import CollectSettings, generate_record, usable_tokens
from draftloop.config import Models
from draftloop.decoding.decoder import Decoding, Settings
from draftloop.errors import PairError, PromptError
from draftloop.models.pair import load_pair
from draftloop.prompts.prompt import Prompt, Unusable

pytestmark = pytest.mark.row("wrong pair")


@pytest.fixture
def models(small_models: Models, tmp_path: Path) -> Models:
    """A pair of one's own to spoil."""
    for name in ("target", "draft"):
        shutil.copytree(getattr(small_models, name), tmp_path / name)
    return Models(target=str(tmp_path / "target"), draft=str(tmp_path / "draft"))


def refusal(models: Models) -> str:
    with pytest.raises(PairError) as caught:
        load_pair(models)
    message = str(caught.value)
    assert (caught.value.exit_code, "\n" in message) == (2, False)
    return message


def test_two_swapped_ids_in_a_vocabulary_of_the_same_size_are_refused_and_the_first_is_named(
    models: Models, row: Row
) -> None:
    choose, pairs = random.Random(1), row.count(4, 100)
    tokenizer = Path(models.draft) / "tokenizer.json"
    good = tokenizer.read_bytes()
    for _ in range(pairs):
        first, second = choose.sample(range(1, VOCABULARY), 2)
        swap_tokens(Path(models.draft), first, second)
        assert f"id {min(first, second)} is " in refusal(models)
        tokenizer.write_bytes(good)
    load_pair(models)
    row.did(pairs, "pairs of swapped ids")


def padded(models: Models) -> None:
    """Rows for ids that no tokenizer has yet, so that added ones lie below the common width."""
    for seed, directory in enumerate((models.target, models.draft)):
        write_llama(Path(directory), rows=VOCABULARY + 64, seed=seed)


def only_one_has_it(role: str) -> Callable[[Models], None]:
    def write(models: Models) -> None:
        padded(models)
        add_token(Path(getattr(models, role)), "<tool>")

    return write


def have_other_names(models: Models) -> None:
    padded(models)
    add_token(Path(models.target), "<a>")
    add_token(Path(models.draft), "<b>")


WRONG: dict[str, tuple[Callable[[Models], None], str]] = {
    "a token that only the draft has": (
        only_one_has_it("draft"),
        f"id {VOCABULARY} is None to the target and '<tool>' to the draft",
    ),
    "a token that only the target has": (
        only_one_has_it("target"),
        f"id {VOCABULARY} is '<tool>' to the target and None to the draft",
    ),
    "two tokens of other names": (
        have_other_names,
        f"id {VOCABULARY} is '<a>' to the target and '<b>' to the draft",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_work_together_is_refused_in_one_line(models: Models, name: str, row: Row) -> None:
    spoil, expected = WRONG[name]
    spoil(models)
    assert expected in refusal(models)
    row.did(1, "other differences")


def is_special_to_one(models: Models) -> None:
    padded(models)
    for directory, special in ((models.target, True), (models.draft, False)):
        add_token(Path(directory), "<tool>", special=special)
        edit_json(Path(directory) / "tokenizer_config.json", additional_special_tokens=["<tool>"] if special else None)


def pads_otherwise(models: Models) -> None:
    edit_json(Path(models.target) / "tokenizer_config.json", pad_token="<|end|>")


def ends_otherwise(models: Models) -> None:
    edit_json(Path(models.draft) / "tokenizer_config.json", eos_token="a")


def begins_otherwise(models: Models) -> None:
    edit_json(Path(models.draft) / "tokenizer_config.json", bos_token="a")


def has_one_beyond(role: str) -> Callable[[Models], None]:
    return lambda models: add_token(Path(getattr(models, role)), "<unused>")


UNUSED: dict[str, Callable[[Models], None]] = {
    "the target's padding": pads_otherwise,
    "a token that is special to one": is_special_to_one,
    "the draft's end of text": ends_otherwise,
    "the draft's begin of text": begins_otherwise,
    "a token of the draft's beyond the common width": has_one_beyond("draft"),
    "a token of the target's beyond the common width": has_one_beyond("target"),
}


@pytest.mark.parametrize("name", UNUSED)
def test_what_is_never_used_may_differ_and_never_comes_out(models: Models, name: str, row: Row) -> None:
    same = load_pair(models)
    UNUSED[name](models)
    pair = load_pair(models)
    assert pair.stop_tokens == same.stop_tokens  # the target's, whatever the draft says
    generations = row.count(4, 40)
    for number in range(generations):
        settings = Settings(sampler(1.5, seed=number), "rejection", 4, 24)
        record, _ = generate_record(pair, Prompt("a prompt"), [1 + number % 200, 7, 9], CollectSettings(settings))
        ids = {*record.draft_output, *record.target_output, *(d.draft_token for d in record.disagreements)}
        assert max(ids) < pair.width
    found = usable_tokens(pair, Prompt("<unused>"), settings, chat_template=False, max_length=99)
    is_one = isinstance(found, Unusable)
    assert is_one == (name == "a token of the target's beyond the common width") or max(found) < pair.width
    row.did(generations, "generations of pairs that differ in what is never used")


def test_the_command_generates_nothing_with_a_wrong_pair(
    models: Models, tmp_path: Path, command: Callable[..., Any]
) -> None:
    swap_tokens(Path(models.draft), 70, 140)
    data = tmp_path / "data"
    said = command(
        "--data-dir", data, "collect-data", "-p", "hello", "--model", models.target, "--draft-model", models.draft
    )
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert "id 70 is " in said.err
    assert not data.exists()


POSITIONS = 40


def test_a_text_that_would_reach_past_the_positions_of_a_model_is_refused_before_its_first_token(
    tmp_path: Path, small_models: Models, row: Row
) -> None:
    write_llama(tmp_path / "target", seed=1, max_position_embeddings=POSITIONS)
    pair = load_pair(Models(target=str(tmp_path / "target"), draft=small_models.draft))
    assert pair.context == POSITIONS
    for prompt, count in ((10, 4), (20, 1), (30, 8)):
        longest = POSITIONS - prompt - count - 1
        settings = Settings(sampler(0.0), "greedy", count, longest)
        assert Decoding(pair, range(1, prompt + 1), settings)
        with pytest.raises(PromptError, match=f"need {POSITIONS + 1} positions, the pair holds {POSITIONS}"):
            Decoding(pair, range(1, prompt + 1), replace(settings, max_tokens=longest + 1))
        row.did(1, "texts past the positions of a model")
