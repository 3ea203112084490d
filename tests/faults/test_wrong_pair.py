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
from model_dirs import VOCABULARY, add_token, edit_json, swap_tokens, write_llama, write_mamba
from tiny import sampler

from draftloop.config import Models
from draftloop.errors import PairError, PromptError
from draftloop.pair import load_pair
from draftloop.speculative.decoder import Decoding, Settings

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


def is_special_to_one(models: Models) -> None:
    for directory, special in ((models.target, True), (models.draft, False)):
        add_token(Path(directory), "<tool>", special=special)
        edit_json(Path(directory) / "tokenizer_config.json", additional_special_tokens=["<tool>"] if special else None)


def have_other_names(models: Models) -> None:
    add_token(Path(models.target), "<a>")
    add_token(Path(models.draft), "<b>")


def ends_otherwise(models: Models) -> None:
    edit_json(Path(models.draft) / "tokenizer_config.json", eos_token="a")


def begins_otherwise(models: Models) -> None:
    edit_json(Path(models.draft) / "tokenizer_config.json", bos_token="a")


def is_mamba(role: str) -> Callable[[Models], None]:
    def write(models: Models) -> None:
        directory = Path(getattr(models, role))
        shutil.rmtree(directory)
        write_mamba(directory)

    return write


WRONG: dict[str, tuple[Callable[[Models], None], str]] = {
    "a token that only the draft has": (
        lambda models: add_token(Path(models.draft), "<tool>"),
        f"id {VOCABULARY} is None to the target and '<tool>' to the draft",
    ),
    "a token that only the target has": (
        lambda models: add_token(Path(models.target), "<tool>"),
        f"id {VOCABULARY} is '<tool>' to the target and None to the draft",
    ),
    "two tokens of other names": (
        have_other_names,
        f"id {VOCABULARY} is '<a>' to the target and '<b>' to the draft",
    ),
    "a special token of one": (is_special_to_one, f"id {VOCABULARY} is a special token to only one"),
    "another end of text": (ends_otherwise, "disagree on eos_token_id: 0 and "),
    "another begin of text": (begins_otherwise, "disagree on bos_token_id: 0 and "),
    "a target that cannot be trimmed": (is_mamba("target"), "the target's cache (ArraysCache) cannot take back"),
    "a draft that cannot be trimmed": (is_mamba("draft"), "the draft's cache (ArraysCache) cannot take back"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_work_together_is_refused_in_one_line(models: Models, name: str, row: Row) -> None:
    spoil, expected = WRONG[name]
    spoil(models)
    assert expected in refusal(models)
    row.did(1, "other differences")


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


WINDOW = 40


def test_a_text_that_would_reach_past_a_rotating_cache_is_refused_before_its_first_token(
    tmp_path: Path, small_models: Models, row: Row
) -> None:
    kinds = ["sliding_attention", "full_attention"]
    write_llama(tmp_path / "target", seed=1, layer_types=kinds, sliding_window=WINDOW)
    pair = load_pair(Models(target=str(tmp_path / "target"), draft=small_models.draft))
    assert pair.context == WINDOW
    for prompt, count in ((10, 4), (20, 1), (30, 8)):
        longest = WINDOW - prompt - count - 1
        settings = Settings(sampler(0.0), "greedy", count, longest)
        assert Decoding(pair, range(1, prompt + 1), settings)
        with pytest.raises(PromptError, match=f"need {WINDOW + 1} positions, the pair holds {WINDOW}"):
            Decoding(pair, range(1, prompt + 1), replace(settings, max_tokens=longest + 1))
        row.did(1, "texts past a rotating cache")
