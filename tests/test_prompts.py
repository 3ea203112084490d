"""Prompts come from files of two kinds, become ids without a traceback whatever they hold, and say why they do not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mlx_lm.utils import load_tokenizer
from model_dirs import write_tokenizer

from draftloop.errors import PromptError
from draftloop.pair import Pair
from draftloop.prompts import Prompt, Reading, Unusable, encode, read_prompts


def file(directory: Path, name: str, content: bytes) -> Path:
    (directory / name).write_bytes(content)
    return directory / name


def refusal(path: Path) -> str:
    with pytest.raises(PromptError) as caught:
        read_prompts(path)
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


# -- files ------------------------------------------------------------------------------------------------------------


def test_a_text_file_has_a_prompt_a_line_and_empty_lines_are_none(tmp_path: Path) -> None:
    path = file(tmp_path, "p.txt", b"What is Python?\r\n\n   \n  Explain AI  \nlast")
    assert [prompt.text for prompt in read_prompts(path)] == ["What is Python?", "  Explain AI  ", "last"]


def test_a_jsonl_file_has_prompts_and_chat_messages(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is Python?", "name": "x"}]
    lines = [{"prompt": "Explain\nAI", "id": 3}, {"messages": messages}]
    path = file(tmp_path, "p.jsonl", "\n\n".join(map(json.dumps, lines)).encode())
    plain, chat = read_prompts(path)
    assert plain == Prompt("Explain\nAI")
    assert chat.text == "Be brief.\nWhat is Python?"
    assert chat.messages == (messages[0], {"role": "user", "content": "What is Python?"})


@pytest.mark.parametrize(("name", "line"), [("p.txt", b"Explain AI"), ("p.jsonl", b'{"prompt": "Explain AI"}')])
def test_a_byte_order_mark_is_no_part_of_the_first_prompt(name: str, line: bytes, tmp_path: Path) -> None:
    assert read_prompts(file(tmp_path, name, b"\xef\xbb\xbf" + line + b"\r\n")) == [Prompt("Explain AI")]


@pytest.mark.parametrize(("name", "line"), [("p.txt", b"a\xff\xfeb"), ("p.jsonl", b'{"prompt": "a\xff\xfeb"}')])
def test_bytes_that_are_no_utf_8_become_replacement_characters(name: str, line: bytes, tmp_path: Path) -> None:
    assert read_prompts(file(tmp_path, name, line)) == [Prompt("a\ufffd\ufffdb")]


def test_a_lone_surrogate_as_javascript_writes_it_is_read(tmp_path: Path) -> None:
    assert read_prompts(file(tmp_path, "p.jsonl", rb'{"prompt": "a\ud800b"}')) == [Prompt("a\ud800b")]


def test_nul_and_right_to_left_marks_are_part_of_a_prompt(tmp_path: Path) -> None:
    text = "a\0b \u202eשלום\u202c"
    assert read_prompts(file(tmp_path, "p.txt", text.encode())) == [Prompt(text)]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("p.csv", b"x", "expected .txt (a prompt a line) or .jsonl, found .csv"),
        ("p", b"x", "found no ending"),
        ("p.txt", b"", "holds no prompts"),
        ("p.txt", b"\n \n\r\n", "holds no prompts"),
        ("p.jsonl", b"\xef\xbb\xbf", "holds no prompts"),
        ("p.jsonl", b'{"prompt": "a"}\n\n{"prompt"', "line 3: not a JSON object"),
        ("p.jsonl", b"[" * 100_000, "line 1: not a JSON object"),
        ("p.jsonl", b'{"prompt": ' + b"9" * 5000 + b"}", "line 1: not a JSON object"),
        ("p.jsonl", b'"text"', 'line 1: expected an object with "prompt" (text) or "messages" (a list)'),
        ("p.jsonl", b'{"prompt": 5}', "line 1: expected an object"),
        ("p.jsonl", b'{"messages": []}', "line 1: expected an object"),
        (
            "p.jsonl",
            b'{"messages": ["hello"]}',
            'line 1: every message needs "role" and "content" as text, found hello',
        ),
        ("p.jsonl", b'{"messages": [{"role": "user"}]}', "every message needs"),
        ("p.jsonl", b'{"messages": [{"role": "user", "content": ["a"]}]}', "every message needs"),
    ],
    ids=range(14),
)
def test_a_file_that_cannot_be_used_is_refused_by_name_and_line(
    name: str, content: bytes, reason: str, tmp_path: Path
) -> None:
    assert reason in refusal(file(tmp_path, name, content))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "directory.txt").mkdir()
    for name in ("nowhere.txt", "directory.txt", "x" * 300 + ".txt"):
        assert "cannot be read: " in refusal(tmp_path / name)


@given(content=st.binary(max_size=200), name=st.sampled_from(["p.txt", "p.jsonl"]))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_prompts_or_a_refusal(content: bytes, name: str, tmp_path: Path) -> None:
    try:
        found = read_prompts(file(tmp_path, name, content))
    except PromptError:
        return
    assert all(isinstance(prompt.text, str) for prompt in found)


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
        ids = encode(Prompt(text), tokenizer, chat_template=chat_template, max_length=1000)
        if not text.strip():
            assert ids == Unusable("empty", "no text")
            continue
        assert isinstance(ids, list)
        assert tokenizer.decode(ids) == SURROGATES.sub("\ufffd", text)
        assert encode(Prompt(tokenizer.decode(ids)), tokenizer, chat_template=chat_template, max_length=1000) == ids


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
        found = encode(Prompt("hi"), tokenizer, chat_template=chat_template, max_length=100)
        return str(tokenizer.decode(found))

    assert text(chat, True) == "[user]hi\n[assistant]"
    assert text(chat, False) == text(no_template, True) == text(no_template, False) == "hi"


def test_messages_go_through_the_template_whole(chat: Any) -> None:
    prompt = Prompt("a\nb", ({"role": "system", "content": "a"}, {"role": "user", "content": "b\ud800"}))
    ids = encode(prompt, chat, chat_template=True, max_length=100)
    assert chat.decode(ids) == "[system]a\n[user]b\ufffd\n[assistant]"


def test_messages_without_a_template_cannot_be_used(chat: Any, no_template: Any) -> None:
    prompt = Prompt("a", ({"role": "user", "content": "a"},))
    for tokenizer, wanted in ((chat, False), (no_template, True)):
        found = encode(prompt, tokenizer, chat_template=wanted, max_length=100)
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
    found = encode(Prompt("hi"), load_tokenizer(tmp_path), chat_template=True, max_length=100)
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
    once = encode(Prompt("hi"), begins, chat_template=False, max_length=100, reading=parsed)
    assert isinstance(once, list)
    assert once[0] == 0
    assert encode(Prompt("<|end|>hi"), begins, chat_template=False, max_length=100, reading=parsed) == once


def test_a_text_that_spells_the_first_special_token_gets_it_all_the_same(begins: Any) -> None:
    ids = encode(Prompt("<|end|>hi"), begins, chat_template=False, max_length=100)
    assert isinstance(ids, list)
    assert [i for i in ids if i == 0] == [0]
    assert begins.decode(ids) == "<|end|><|end|>hi"


def test_a_prompt_of_too_many_tokens_is_skipped_and_never_cut(chat: Any) -> None:
    ids = encode(Prompt("12345"), chat, chat_template=False, max_length=5)
    assert len(ids) == 5  # this tokenizer has no token of several digits
    found = encode(Prompt("123456"), chat, chat_template=False, max_length=5)
    assert found == Unusable("too long", "6 tokens, at most 5 expected (data.max_prompt_length)")


class Unwanted:
    """A tokenizer that may be asked for its vocabulary, and for nothing else."""

    has_chat_template = True
    added_tokens_decoder: ClassVar[dict[int, Any]] = {}

    def get_vocab(self) -> dict[str, int]:
        return {"a": 0, "a" * 100: 1}

    def encode(self, *_: object, **__: object) -> list[int]:
        raise AssertionError("the text was tokenized")

    apply_chat_template = encode


def test_ten_megabytes_are_skipped_before_they_are_tokenized() -> None:
    text = "a" * 10_000_000
    for prompt in (Prompt(text), Prompt(text, ({"role": "user", "content": text},))):
        found = encode(prompt, Unwanted(), chat_template=True, max_length=2048)
        assert found == Unusable("too long", "10,000,000 characters, more than 2,048 tokens can hold")


def test_a_text_that_could_just_fit_is_tokenized() -> None:
    """Or the test above would pass with a limit of nothing."""
    with pytest.raises(AssertionError, match="was tokenized"):
        encode(Prompt("a" * 204_800), Unwanted(), chat_template=False, max_length=2048)


@pytest.mark.parametrize("text", ["", " ", "\n\t", "\u3000"], ids=ascii)
def test_a_prompt_without_a_visible_character_is_empty(text: str, chat: Any) -> None:
    assert encode(Prompt(text), chat, chat_template=True, max_length=100) == Unusable("empty", "no text")


def test_a_prompt_on_which_the_tokenizers_regular_expression_gives_up_is_skipped(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, chat_template=None)
    described = json.loads((tmp_path / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False}
    described["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, described["pre_tokenizer"]]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    tokenizer = load_tokenizer(tmp_path)
    found = encode(Prompt("x" * 64), tokenizer, chat_template=True, max_length=512)
    assert isinstance(found, Unusable)
    assert found.reason == "tokenizer"
    assert isinstance(encode(Prompt("the target"), tokenizer, chat_template=True, max_length=512), list)
