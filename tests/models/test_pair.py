"""A pair is proved to fit before any work starts, and what cannot work is refused in one line that names the reason.

Pairs that do not belong together, and padded ones: tests/faults/test_wrong_pair.py and test_padded_pair.py.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.generate import generate_step
from model_dirs import (
    VOCABULARY,
    edit_json,
    foreign,
    llama_config,
    swap_tokens,
    write_llama,
    write_lora,
    write_mamba,
)
from tiny import sampler

from draftloop import reference
from draftloop.caches import RewindableCache, rewinding_of
from draftloop.config import Models
from draftloop.decoding.decoder import Decoding, Settings
from draftloop.errors import AdapterError, PairError
from draftloop.models import adapter as lora
from draftloop.models.fingerprints import fingerprints
from draftloop.models.hub import find_model, local_fingerprints
from draftloop.models.pair import Pair, cache_kinds, load_pair
from draftloop.registry.registry import Registry

Damage = Callable[[Path], object]


def fingerprint(path: Path) -> str:
    return fingerprints(path).model


@pytest.fixture
def models(small_models: Models, tmp_path: Path) -> Models:
    """A pair of one's own to spoil."""
    for name in ("target", "draft"):
        shutil.copytree(getattr(small_models, name), tmp_path / name)
    return Models(target=str(tmp_path / "target"), draft=str(tmp_path / "draft"))


def refusal(models: Models) -> str:
    with pytest.raises(PairError) as caught:
        load_pair(models)
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert "\n" not in message
    return message


def write(name: str, content: bytes | dict[str, object]) -> Damage:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return lambda directory: (directory / name).write_bytes(data)


# -- what fits --------------------------------------------------------------------------------------------------------


def test_a_pair_of_one_family_loads_with_everything_that_decoding_needs(small_pair: Pair) -> None:
    assert small_pair.width == VOCABULARY
    assert small_pair.stop_tokens == {0}
    assert small_pair.context == llama_config()["max_position_embeddings"]
    assert small_pair.adapter is None
    assert small_pair.identity.target != small_pair.identity.draft
    assert cache_kinds(small_pair.target) == "KVCache"


def test_both_models_are_frozen_and_run_in_float32_on_a_cpu(small_pair: Pair) -> None:
    for model in (small_pair.target, small_pair.draft):
        assert tree_flatten(model.trainable_parameters()) == []
        if mx.default_device() == mx.cpu:
            assert model(mx.array([[1]])).dtype == mx.float32


def test_the_embedded_pair_loads_by_its_names_and_by_its_directories(embedded_pair: Pair) -> None:
    by_path = load_pair(Models(target=str(reference.TARGET), draft=str(reference.DRAFT)))
    assert by_path.identity == embedded_pair.identity
    assert embedded_pair.width == len(embedded_pair.tokenizer.get_vocab())


# -- caches -----------------------------------------------------------------------------------------------------------


WINDOW = 40


@pytest.fixture
def windowed(tmp_path: Path, small_models: Models) -> Pair:
    """A target that forgets what lies further back than WINDOW tokens."""
    kinds = ["sliding_attention", "full_attention"]
    write_llama(tmp_path / "target", seed=1, layer_types=kinds, sliding_window=WINDOW)
    return load_pair(Models(target=str(tmp_path / "target"), draft=small_models.draft))


def test_a_window_limits_no_text_and_the_output_past_it_is_the_targets_own(windowed: Pair) -> None:
    assert windowed.context == llama_config()["max_position_embeddings"]
    prompt, length = list(range(5, 15)), 2 * WINDOW
    pair = replace(windowed, stop_tokens=frozenset())
    output = [
        token for found in Decoding(pair, prompt, Settings(sampler(0.0), "greedy", 4, length)) for token in found.tokens
    ]
    assert output == [int(token) for token, _ in generate_step(mx.array(prompt), pair.target, max_tokens=length)]


@pytest.mark.parametrize("role", ["target", "draft"])
def test_a_recurrent_model_of_a_directory_is_target_or_draft_as_any_other(role: str, models: Models) -> None:
    shutil.rmtree(getattr(models, role))
    write_mamba(Path(getattr(models, role)))
    pair = replace(load_pair(models), stop_tokens=frozenset())
    assert rewinding_of(getattr(pair, role)).way == "local"
    prompt = list(range(5, 15))
    output = [
        token for found in Decoding(pair, prompt, Settings(sampler(0.0), "greedy", 3, 40)) for token in found.tokens
    ]
    assert output == [int(token) for token, _ in generate_step(mx.array(prompt), pair.target, max_tokens=40)]


def test_a_model_whose_cache_takes_nothing_back_is_refused_with_the_reason(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RewindableCache, "rewind", lambda *_: None)
    said = refusal(models)
    assert "the target's cache (KVCache) cannot take rejected tokens back exactly (trim: logits are off by" in said


def test_a_target_that_is_left_on_disk_is_not_tried_before_it_is_asked(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RewindableCache, "rewind", lambda *_: None)
    assert load_pair(models, lazy_target=True).width == VOCABULARY


@pytest.mark.parametrize("role", ["target", "draft"])
def test_the_shorter_position_encoding_of_the_two_is_the_longest_text(role: str, models: Models) -> None:
    edit_json(Path(getattr(models, role)) / "config.json", max_position_embeddings=96)
    assert load_pair(models).context == 96


def test_models_that_name_no_limit_have_none(models: Models) -> None:
    for directory in (models.target, models.draft):
        edit_json(Path(directory) / "config.json", max_position_embeddings=None)
    assert load_pair(models).context is None


# -- directories ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["nowhere", "./nowhere", "a/b/c", "embedded:other", "~nobody-of-this-name/x", "a\0b", "x" * 300, "/" + "y" * 5000],
)
def test_a_model_that_is_not_there_is_refused_with_what_is_expected(name: str) -> None:
    with pytest.raises(PairError) as caught:
        find_model(name)
    assert "expected a directory in mlx-lm's format, a Hugging Face id (owner/name), or one of embedded" in str(
        caught.value
    )


@pytest.mark.parametrize("name", ["nobody/nothing-at-all", "a b/c", "owner/" + "x" * 300])
def test_a_hugging_face_id_that_cannot_be_had_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(PairError, match="nor to be had from Hugging Face") as caught:
        find_model(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("missing", "reason"), [("config.json", "no config.json"), ("model.safetensors", "no model")])
def test_a_directory_without_one_of_its_files_is_no_model(missing: str, reason: str, models: Models) -> None:
    (Path(models.draft) / missing).unlink()
    assert reason in refusal(models)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "additional_chat_templates/a.jinja"])
@pytest.mark.parametrize("endless", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"])
def test_what_can_be_read_for_ever_is_no_file_of_a_model(endless: Damage, name: str, models: Models) -> None:
    path = Path(models.draft) / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    endless(path)
    assert f"{name} is a pipe or a device" in refusal(models)
    assert local_fingerprints(models.draft) is None


def cut_weights(keep: int) -> Damage:
    def cut(directory: Path) -> None:
        path = directory / "model.safetensors"
        path.write_bytes(path.read_bytes()[:keep])

    return cut


DAMAGED: dict[str, Damage] = {
    "weights cut to nothing": cut_weights(0),
    "weights cut in the header": cut_weights(100),
    "weights cut in the body": cut_weights(-1),
    "weights of other bytes": write("model.safetensors", b"\xff" * 500),
    "weights of another shape": lambda directory: edit_json(directory / "config.json", hidden_size=64),
    "a config that is no JSON": write("config.json", b"{"),
    "a config that is no UTF-8": write("config.json", b"\xff"),
    "a config that is a list": write("config.json", b"[]"),
    "a config that is nothing": write("config.json", b"null"),
    "a config without members": write("config.json", b"{}"),
    "an unknown architecture": lambda directory: edit_json(directory / "config.json", model_type="nothing"),
    "a width of zero": lambda directory: edit_json(directory / "config.json", hidden_size=0),
    "a width that is text": lambda directory: edit_json(directory / "config.json", hidden_size="wide"),
    "a text_config that is nothing": write("config.json", {**llama_config(), "text_config": None}),
    "a limit that is text": lambda directory: edit_json(directory / "config.json", max_position_embeddings="x"),
    "no tokenizer": lambda directory: (directory / "tokenizer.json").unlink(),
    "a tokenizer of other bytes": write("tokenizer.json", b"\x00\x01"),
    "a tokenizer without members": write("tokenizer.json", b"{}"),
    "a tokenizer config that is a list": write("tokenizer_config.json", b"[]"),
    "a limit of the tokenizer's that is text": lambda d: edit_json(d / "tokenizer_config.json", model_max_length="x"),
    "an end of text that is no number": write("generation_config.json", {"eos_token_id": ["x"]}),
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_model_directory_is_refused_in_one_line(damage: Damage, models: Models) -> None:
    damage(Path(models.draft))
    message = refusal(models)
    assert message.startswith(f"{models.draft} cannot be loaded by mlx-lm: ")


def test_a_refusal_stays_a_line_however_many_weights_are_not_the_models(models: Models) -> None:
    path = Path(models.draft) / "model.safetensors"
    mx.save_safetensors(str(path), {f"odd {number}": mx.zeros(1) for number in range(999)}, {"format": "mlx"})
    assert "Received 999 parameters not in model" in refusal(models)
    assert len(refusal(models)) < 999


# -- fingerprints -----------------------------------------------------------------------------------------------------

MEGABYTE = 1 << 20


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Not a model that loads, but one with three megabytes of weights to take a fingerprint of."""
    header = b'{"a":{"dtype":"U8","shape":[3145728],"data_offsets":[0,3145728]}}'
    body = bytes(3 * MEGABYTE)
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + body)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    return tmp_path


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "at", [9, 80, MEGABYTE, -MEGABYTE + 5, -1], ids=["header", "first", "first MB", "last MB", "last"]
)
def test_one_changed_bit_in_the_header_or_in_the_first_or_last_megabyte_changes_the_fingerprint(
    at: int, large: Path
) -> None:
    before = fingerprint(large)
    assert fingerprint(large) == before
    flip(large / "model.safetensors", at)
    assert fingerprint(large) != before


def test_another_length_or_another_shard_changes_the_fingerprint(large: Path) -> None:
    seen = {fingerprint(large)}
    with (large / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    seen.add(fingerprint(large))
    shutil.copy(large / "model.safetensors", large / "model-2.safetensors")
    seen.add(fingerprint(large))
    assert len(seen) == 3


def test_a_copy_of_a_model_has_its_fingerprint(small_models: Models, models: Models) -> None:
    assert fingerprint(Path(models.target)) == fingerprint(Path(small_models.target))


def test_the_identity_of_a_tokenizer_is_what_its_ids_mean(small_pair: Pair, models: Models) -> None:
    for directory in (models.target, models.draft):
        edit_json(Path(directory) / "tokenizer_config.json", chat_template="{{ messages[0]['content'] }}")
    assert load_pair(models).identity.tokenizer == small_pair.identity.tokenizer
    for directory in (models.target, models.draft):
        swap_tokens(Path(directory), 70, 140)
    assert load_pair(models).identity.tokenizer != small_pair.identity.tokenizer


# -- adapters ---------------------------------------------------------------------------------------------------------


def logits(pair: Pair) -> list[float]:
    return list(pair.draft(mx.array([[3, 1, 4]]))[0, -1].tolist())


def version_for(pair: Pair, root: Path, identity: object, amount: float = 0.5) -> Path:
    registry = Registry(root / "adapters")
    made = registry.create(lambda path: write_lora(path, pair.draft, amount=amount) and None, {"pair": identity})
    return made.path


def test_an_adapter_changes_the_draft_until_it_is_taken_off(models: Models, tmp_path: Path) -> None:
    pair = load_pair(models)
    before = logits(pair)
    adapted = pair.with_adapter(write_lora(tmp_path / "other", pair.draft, amount=0.5))
    assert adapted.adapter == "other"
    assert logits(adapted) != before
    assert adapted.with_adapter(None).adapter is None
    assert logits(pair) == before


def test_a_version_of_this_draft_loads_with_the_pair(models: Models, tmp_path: Path) -> None:
    pair = load_pair(models)
    path = version_for(pair, tmp_path, pair.identity)
    assert load_pair(models, path).adapter == "v0001"
    assert load_pair(models, path, "the champion").adapter == "the champion"


def test_an_adapter_made_for_another_draft_is_refused_although_its_shapes_fit(models: Models, tmp_path: Path) -> None:
    pair = load_pair(models)
    path = version_for(pair, tmp_path, foreign(pair.identity))
    with pytest.raises(AdapterError, match=f"trained for draft ffffffffffff, this draft is {pair.identity.draft[:12]}"):
        load_pair(models, path)


def test_a_refused_adapter_leaves_the_one_that_is_on(models: Models, tmp_path: Path) -> None:
    pair = load_pair(models)
    adapted = pair.with_adapter(write_lora(tmp_path / "good", pair.draft, amount=0.5))
    before = logits(adapted)
    foreign_version = version_for(pair, tmp_path, foreign(pair.identity))
    damaged = write_lora(tmp_path / "damaged", pair.draft, amount=0.1)
    (damaged / "adapters.safetensors").write_bytes(b"\0" * 50)
    for path in (foreign_version, damaged, tmp_path / "nowhere"):
        with pytest.raises(AdapterError):
            adapted.with_adapter(path)
        assert logits(adapted) == before
        assert lora.is_attached(adapted.draft)
