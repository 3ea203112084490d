"""What a model says to given ids has one fingerprint, its chat template another, and what is neither has none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from model_dirs import VOCABULARY, add_token, edit_json, swap_tokens

from draftloop import reference
from draftloop.config import Models
from draftloop.models.fingerprints import fingerprints

Change = Callable[[Path], object]


@pytest.fixture
def model(small_models: Models, tmp_path: Path) -> Path:
    """A model directory to change."""
    return Path(shutil.copytree(small_models.target, tmp_path / "model"))


def config(**fields: object) -> Change:
    return lambda path: edit_json(path / "config.json", **fields)


def tokenizer_config(**fields: object) -> Change:
    return lambda path: edit_json(path / "tokenizer_config.json", **fields)


def written(name: str, text: str) -> Change:
    def write(path: Path) -> None:
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(text)

    return write


def rewrite_json(name: str) -> Change:
    """The same content in another layout and order."""

    def rewrite(path: Path) -> None:
        found = json.loads((path / name).read_text())
        (path / name).write_text(json.dumps(dict(reversed(found.items())), indent=4))

    return rewrite


def flip_a_weight(path: Path) -> None:
    shard = path / "model.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)


def repeat_the_vocabulary(path: Path) -> None:
    found = json.loads((path / "tokenizer.json").read_text())["model"]["vocab"]
    (path / "vocab.json").write_text(json.dumps(found))


def another_merge(path: Path) -> None:
    found = json.loads((path / "tokenizer.json").read_text())
    found["model"]["merges"].pop()
    (path / "tokenizer.json").write_text(json.dumps(found))


SAME_MODEL: dict[str, Change] = {
    "generation_config.json": written("generation_config.json", '{"temperature": 0.6}'),
    "what made the config": config(transformers_version="9.9", _name_or_path="elsewhere", torch_dtype="bfloat16"),
    "the config's layout": rewrite_json("config.json"),
    "the tokenizer's layout": rewrite_json("tokenizer.json"),
    "a vocabulary that only repeats": repeat_the_vocabulary,
    "merges": another_merge,
    "how long a text may be": tokenizer_config(model_max_length=99),
    "an end of text written as an object": tokenizer_config(eos_token={"content": "<|end|>", "lstrip": False}),
    "a card": written("README.md", "a card"),
}
TEMPLATES: dict[str, Change] = {
    "a space more": lambda path: edit_json(
        path / "tokenizer_config.json",
        chat_template=json.loads((path / "tokenizer_config.json").read_text())["chat_template"] + " ",
    ),
    "none": tokenizer_config(chat_template=None),
    "two": tokenizer_config(
        chat_template=[{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    ),
    "a file": written("chat_template.jinja", "{{ messages }}"),
    "another file": written("additional_chat_templates/tool_use.jinja", "{{ tools }}"),
    "mlx-lm's own": tokenizer_config(chat_template_type="deepseek_v32"),
}
OTHER_MODELS: dict[str, Change] = {
    "a weight": flip_a_weight,
    "the config": config(rope_theta=5.0),
    "the end of text by the config": config(eos_token_id=1),
    "two swapped ids": lambda path: swap_tokens(path, 70, 140),
    "a token": lambda path: add_token(path, "<new>"),
    "a token in added_tokens.json": written("added_tokens.json", f'{{"<new>": {VOCABULARY}}}'),
    "a token in the decoder of added ones": tokenizer_config(
        added_tokens_decoder={str(VOCABULARY): {"content": "<new>", "special": True}}
    ),
    "a special token that the vocabulary lacks": tokenizer_config(pad_token="<pad>"),
    "one more that is special": tokenizer_config(additional_special_tokens=["<tool>"]),
    "the end of text": tokenizer_config(eos_token="a"),
}


@pytest.mark.parametrize("change", SAME_MODEL.values(), ids=SAME_MODEL)
def test_what_changes_no_answer_changes_no_fingerprint(change: Change, model: Path) -> None:
    before = fingerprints(model)
    change(model)
    after = fingerprints(model)
    assert (after.model, after.template) == (before.model, before.template)


@pytest.mark.parametrize("change", TEMPLATES.values(), ids=TEMPLATES)
def test_another_chat_template_is_the_same_model_with_another_fingerprint_of_the_template(
    change: Change, model: Path
) -> None:
    before = fingerprints(model)
    change(model)
    after = fingerprints(model)
    assert after.model == before.model
    assert after.template != before.template


@pytest.mark.parametrize("change", OTHER_MODELS.values(), ids=OTHER_MODELS)
def test_weights_config_and_vocabulary_make_another_model(change: Change, model: Path) -> None:
    before = fingerprints(model)
    change(model)
    after = fingerprints(model)
    assert after.model != before.model
    assert after.template == before.template


def test_all_of_these_are_told_from_each_other(model: Path, tmp_path: Path) -> None:
    found = set()
    for number, change in enumerate([*OTHER_MODELS.values(), lambda _: None]):
        copy = Path(shutil.copytree(model, tmp_path / str(number)))
        change(copy)
        found.add(fingerprints(copy).model)
    assert len(found) == len(OTHER_MODELS) + 1 - 2  # the same new token, said in three places, is one


def test_the_template_is_the_one_that_the_tokenizer_would_use(model: Path) -> None:
    """A file hides what the config says, and a set of one is that one."""
    tokenizer_config(chat_template="x")(model)
    as_text = fingerprints(model).template
    tokenizer_config(chat_template=[{"name": "default", "template": "x"}])(model)
    assert fingerprints(model).template == as_text
    written("chat_template.jinja", "x")(model)
    tokenizer_config(chat_template="hidden")(model)
    assert fingerprints(model).template == as_text
    tokenizer_config(chat_template=None)(model)
    (model / "chat_template.jinja").unlink()
    assert fingerprints(model).template is None


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "added_tokens.json", "config.json"])
@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff", b'{"model": 3, "vocab": 3}', b"[" * 100_000], ids=len)
def test_files_of_nonsense_have_a_fingerprint_too(name: str, content: bytes, model: Path) -> None:
    """`status` looks at whatever lies there; the pair is refused when it is loaded."""
    (model / name).write_bytes(content)
    assert fingerprints(model) == fingerprints(model)


@pytest.mark.parametrize("vocabulary", [[["a", -0.5], ["b", -1.5]], {"a": 0, "b": 1}], ids=["unigram", "bpe"])
def test_a_vocabulary_may_be_a_list_or_an_object(vocabulary: object, model: Path) -> None:
    for token in ("c", "d"):
        edit_json(model / "tokenizer.json", model={"vocab": vocabulary}, added_tokens=[{"id": 2, "content": token}])
        seen = fingerprints(model).model
        edit_json(model / "tokenizer.json", model={"vocab": {"a": 1, "b": 0}})
        assert fingerprints(model).model != seen
    edit_json(model / "tokenizer.json", model={"vocab": {"a": 0, "b": 1}})
    assert fingerprints(model).model == seen


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.txt", "x.tiktoken"])
def test_without_a_tokenizer_json_the_vocabulary_is_the_file_that_there_is(name: str, model: Path) -> None:
    (model / name).write_bytes(b"one")
    with_json = fingerprints(model).model
    (model / name).write_bytes(b"two")
    assert fingerprints(model).model == with_json
    (model / "tokenizer.json").unlink()
    before = fingerprints(model).model
    (model / name).write_bytes(b"three")
    assert fingerprints(model).model != before


def test_the_former_fingerprint_is_what_it_was() -> None:
    """Of the embedded pair, taken by draftloop 0.1: data directories know the models by it."""
    found = [fingerprints(path).former for path in (reference.TARGET, reference.DRAFT)]
    assert found == [
        "b5eeff705654ce37d39e1a4702d1e27ca66a1ab6a532aaf7b061b82dca00d5a6",
        "513aecf40292e154a23b9a58ae186e38c18dc5d8362a701a917922a919f7a4a2",
    ]


def test_the_former_fingerprint_changed_with_everything(model: Path) -> None:
    seen = {fingerprints(model).former}
    for change in (SAME_MODEL["generation_config.json"], TEMPLATES["a space more"], OTHER_MODELS["a token"]):
        change(model)
        seen.add(fingerprints(model).former)
    assert len(seen) == 4
