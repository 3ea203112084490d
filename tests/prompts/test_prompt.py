"""Prompts become ids without a traceback whatever they hold, and say why they do not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mlx_lm.utils import load_tokenizer
from model_dirs import write_tokenizer

from draftloop.models.pair import Pair
from draftloop.prompts.prompt import Prompt, Reading, Unusable, encode_prompt

# -- ids --------------------------------------------------------------------------------------------------------------

SURROGATES = re.compile("[\ud800-\udfff]")
ANY_CHARACTER = st.characters(exclude_categories=())  # lone surrogates too


@given(text=st.text(ANY_CHARACTER, max_size=60))
@example(text="\ud800")
@example(text="a\0b")
@example(text="\ufeffa")
@example(text="\u202eשלום\u202c مرحبا")
@example(text="<|endoftext|>x<|endoftext|>")
@example(text="\U0001f469\u200d\U0001f680 e\u0301 \ufffd")
@settings(max_examples=300, deadline=None)
def test_the_ids_of_any_text_spell_it_again(text: str, embedded_pair: Pair) -> None:
    tokenizer = embedded_pair.tokenizer
    for chat_template in (True, False):
        ids = encode_prompt(Prompt(text), tokenizer, chat_template=chat_template, max_length=1000)
        if not text.strip():
            assert ids == Unusable("empty", "no text")
            continue
        assert isinstance(ids, list)
        assert tokenizer.decode(ids) == SURROGATES.sub("\ufffd", text)
        assert (
            encode_prompt(Prompt(tokenizer.decode(ids)), tokenizer, chat_template=chat_template, max_length=1000) == ids
        )


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tmp_path_factory.mktemp("chat")
    write_tokenizer(directory)
    return load_tokenizer(directory)


@pytest.fixture(scope="module")
def no_template(tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tmp_path_factory.mktemp("plain")
    write_tokenizer(directory, chat_template=None)
    return load_tokenizer(directory)


def test_a_chat_template_is_applied_where_there_is_one_and_can_be_turned_off(chat: Any, no_template: Any) -> None:
    def text(tokenizer: Any, chat_template: bool) -> str:
        found = encode_prompt(Prompt("hi"), tokenizer, chat_template=chat_template, max_length=100)
        return str(tokenizer.decode(found))

    assert text(chat, True) == "[user]hi\n[assistant]"
    assert text(chat, False) == text(no_template, True) == text(no_template, False) == "hi"


def test_messages_go_through_the_template_whole(chat: Any) -> None:
    prompt = Prompt("a\nb", ({"role": "system", "content": "a"}, {"role": "user", "content": "b\ud800"}))
    ids = encode_prompt(prompt, chat, chat_template=True, max_length=100)
    assert chat.decode(ids) == "[system]a\n[user]b\ufffd\n[assistant]"


def test_messages_without_a_template_cannot_be_used(chat: Any, no_template: Any) -> None:
    prompt = Prompt("a", ({"role": "user", "content": "a"},))
    for tokenizer, wanted in ((chat, False), (no_template, True)):
        found = encode_prompt(prompt, tokenizer, chat_template=wanted, max_length=100)
        assert found == Unusable("no chat template", "chat messages need a tokenizer with a chat template, switched on")


@pytest.mark.parametrize(
    ("template", "detail"),
    [
        ("{{ raise_exception('roles\nmust alternate') }}", "roles must alternate"),
        ("{% for", "unexpected 'end of template'"),
    ],
)
def test_a_prompt_that_the_template_refuses_cannot_be_used(template: str, detail: str, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, chat_template=template)
    found = encode_prompt(Prompt("hi"), load_tokenizer(tmp_path), chat_template=True, max_length=100)
    assert isinstance(found, Unusable)
    assert found.reason == "chat template"
    assert detail in found.detail.lower()


@pytest.fixture
def begins(tmp_path: Path) -> Any:
    """A tokenizer that puts a special token before every text."""
    write_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    found = json.loads(path.read_text())
    found["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|end|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<|end|>": {"id": "<|end|>", "ids": [0], "tokens": ["<|end|>"]}},
    }
    path.write_text(json.dumps(found))
    return load_tokenizer(tmp_path)


def test_where_control_tokens_are_parsed_a_text_that_begins_with_the_first_one_does_not_get_it_twice(
    begins: Any,
) -> None:
    parsed = Reading(parse_special=True)
    once = encode_prompt(Prompt("hi"), begins, chat_template=False, max_length=100, reading=parsed)
    assert isinstance(once, list)
    assert once[0] == 0
    assert encode_prompt(Prompt("<|end|>hi"), begins, chat_template=False, max_length=100, reading=parsed) == once


def test_a_text_that_spells_the_first_special_token_gets_it_all_the_same(begins: Any) -> None:
    ids = encode_prompt(Prompt("<|end|>hi"), begins, chat_template=False, max_length=100)
    assert isinstance(ids, list)
    assert [i for i in ids if i == 0] == [0]
    assert begins.decode(ids) == "<|end|><|end|>hi"


def test_a_prompt_of_too_many_tokens_is_skipped_and_never_cut(chat: Any) -> None:
    ids = encode_prompt(Prompt("12345"), chat, chat_template=False, max_length=5)
    assert len(ids) == 5  # this tokenizer has no token of several digits
    found = encode_prompt(Prompt("123456"), chat, chat_template=False, max_length=5)
    assert found == Unusable("too long", "6 tokens, at most 5 expected (data.max_prompt_length)")


class Unwanted:
    """A tokenizer that may be asked for its vocabulary, and for nothing else."""

    has_chat_template = True
    added_tokens_decoder: ClassVar[dict[int, Any]] = {}

    def get_vocab(self) -> dict[str, int]:
        return {"a": 0, "a" * 100: 1}

    def encode(self, *_: object, **__: object) -> list[int]:
        raise AssertionError("the text was tokenized")

    apply_chat_template = encode_prompt


def test_ten_megabytes_are_skipped_before_they_are_tokenized() -> None:
    text = "a" * 10_000_000
    for prompt in (Prompt(text), Prompt(text, ({"role": "user", "content": text},))):
        found = encode_prompt(prompt, Unwanted(), chat_template=True, max_length=2048)
        assert found == Unusable("too long", "10,000,000 characters, more than 2,048 tokens can hold")


def test_a_text_that_could_just_fit_is_tokenized() -> None:
    """Or the test above would pass with a limit of nothing."""
    with pytest.raises(AssertionError, match="was tokenized"):
        encode_prompt(Prompt("a" * 204_800), Unwanted(), chat_template=False, max_length=2048)


@pytest.mark.parametrize("text", ["", " ", "\n\t", "\u3000"], ids=ascii)
def test_a_prompt_without_a_visible_character_is_empty(text: str, chat: Any) -> None:
    assert encode_prompt(Prompt(text), chat, chat_template=True, max_length=100) == Unusable("empty", "no text")


def test_a_prompt_on_which_the_tokenizers_regular_expression_gives_up_is_skipped(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, chat_template=None)
    described = json.loads((tmp_path / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False}
    described["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, described["pre_tokenizer"]]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    tokenizer = load_tokenizer(tmp_path)
    found = encode_prompt(Prompt("x" * 64), tokenizer, chat_template=True, max_length=512)
    assert isinstance(found, Unusable)
    assert found.reason == "tokenizer"
    assert isinstance(encode_prompt(Prompt("the target"), tokenizer, chat_template=True, max_length=512), list)
