"""A fused draft is the draft with its adapter: exactly in float, and as near as its bits allow when quantized."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import pytest
from builders import failing_files
from mlx import nn
from mlx.utils import tree_unflatten
from mlx_lm.utils import load_adapters
from model_dirs import VOCABULARY, edit_json, write_llama, write_lora
from safetensors.numpy import load_file
from tiny import tiny_llama

from draftloop.errors import ExportError, PairError, UsageError
from draftloop.export.fuse import FusedDraft, Quantization, write_fused
from draftloop.models import adapter as lora
from draftloop.models.adapter_format import AdapterConfig

IDS = mx.array([[5, 1, 9, 30, 2, 7, 250, 11]])


@pytest.fixture
def draft(tmp_path: Path) -> Path:
    """A float32 draft whose rows are 64 wide and more."""
    model = tiny_llama(VOCABULARY, width=64, seed=2)
    return write_llama(tmp_path / "draft", model=model, hidden_size=64, intermediate_size=128, head_dim=32)


@pytest.fixture
def adapter(draft: Path, tmp_path: Path) -> Path:
    return write_lora(tmp_path / "adapter", mlx_lm.load(str(draft))[0], amount=0.3)


def convert(draft: Path, name: str, **options: Any) -> Path:
    """The draft in another form, by mlx-lm's own hand."""
    mlx_lm.convert(str(draft), str(draft.parent / name), **options)
    return draft.parent / name


def fused(draft: Path, adapter: Path, quantization: Quantization | None = None) -> tuple[Path, FusedDraft]:
    directory = draft.parent / f"fused-{len(list(draft.parent.iterdir()))}"
    directory.mkdir()
    return directory, write_fused(draft, adapter, directory, quantization or Quantization())


def logits(directory: Path, adapter: Path | None = None) -> mx.array:
    """In float32, as plain mlx-lm loads it."""
    model, _ = mlx_lm.load(str(directory), adapter_path=None if adapter is None else str(adapter))
    model.set_dtype(mx.float32)
    return model(IDS)


def apart(a: mx.array, b: mx.array) -> float:
    return float(mx.abs(a - b).max().item())


def config_of(directory: Path) -> dict[str, Any]:
    return dict(json.loads((directory / "config.json").read_text()))


def test_a_float_draft_with_the_adapter_in_its_weights_has_the_logits_of_both(draft: Path, adapter: Path) -> None:
    directory, written = fused(draft, adapter)
    assert apart(logits(directory), logits(draft, adapter)) < 1e-4
    assert apart(logits(directory), logits(draft)) > 0.1
    assert (written.quantization, written.bits_per_weight) == (None, 32)


def test_everything_that_mlx_lm_needs_is_there_and_the_tokenizer_is_the_drafts_own_to_the_byte(
    draft: Path, adapter: Path
) -> None:
    (draft / "generation_config.json").write_text('{"eos_token_id": [0, 1]}')
    (draft / "chat_template.jinja").write_text("{{ messages }}")
    (draft / "LICENSE").write_text("do as you like")
    (draft / "diary.txt").write_text("not part of the model")
    directory, _ = fused(draft, adapter)
    assert {path.name for path in directory.iterdir()} == {
        *("config.json", "model.safetensors", "model.safetensors.index.json"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json", "LICENSE"),
    }
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json", "LICENSE"):
        assert (directory / name).read_bytes() == (draft / name).read_bytes()
    assert config_of(directory) == config_of(draft) | {"eos_token_id": [0, 1]}


PROGRAMS = ("own.py", "tokenizer_own.py", "vocab.PY", "chat_template.pyc", "LICENSE.py", "tokenizer.so", "vocab.sh")


def test_no_program_is_copied_and_none_is_named_any_more(draft: Path, adapter: Path) -> None:
    for name in PROGRAMS:
        (draft / name).write_text("print('ran')")
    named = {"AutoConfig": "own.Own", "AutoTokenizer": [None, "tokenizer_own.Own"]}
    for name in ("config.json", "tokenizer_config.json"):
        edit_json(draft / name, auto_map=named)
    directory, _ = fused(draft, adapter)
    assert {path.suffix for path in directory.iterdir()} == {".json", ".safetensors"}
    for name in ("config.json", "tokenizer_config.json"):
        kept = json.loads((directory / name).read_text())
        assert "auto_map" not in kept
        assert kept.items() <= json.loads((draft / name).read_text()).items()
    assert apart(logits(directory), logits(draft, adapter)) < 1e-4


def test_a_draft_that_needs_python_of_its_own_is_not_fused(draft: Path, adapter: Path, tmp_path: Path) -> None:
    (draft / "own.py").write_text("from mlx_lm.models.llama import Model, ModelArgs")
    edit_json(draft / "config.json", model_file="own.py")
    (tmp_path / "out").mkdir()
    with pytest.raises(ExportError, match=r"runs Python of its own \(config.json: model_file\).* without --fuse"):
        write_fused(draft, adapter, tmp_path / "out", Quantization(), trust_remote_code=True)
    with pytest.raises(PairError, match=r"models\.trust_remote_code"):
        write_fused(draft, adapter, tmp_path / "out", Quantization())
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("name", ["LICENSE", "tokenizer_config.json"])
def test_a_link_out_of_the_models_directory_is_not_followed(
    name: str, draft: Path, adapter: Path, tmp_path: Path
) -> None:
    private = tmp_path / "private"
    private.write_bytes((draft / name).read_bytes() if (draft / name).exists() else b"nobody's business")
    (draft / name).unlink(missing_ok=True)
    (draft / name).symlink_to(private)
    (tmp_path / "out").mkdir()
    with pytest.raises(ExportError, match=f"{name} is a link to .*private, outside of the model's directory"):
        write_fused(draft, adapter, tmp_path / "out", Quantization())
    assert list((tmp_path / "out").iterdir()) == []


def test_links_within_the_directory_and_those_of_the_hubs_cache_are_followed(
    draft: Path, adapter: Path, tmp_path: Path
) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0123", tmp_path / "models--a--b" / "blobs"
    for directory in (snapshot, blobs):
        directory.mkdir(parents=True)
    for number, path in enumerate(draft.iterdir()):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", str(number)))
    (snapshot / "LICENSE.txt").write_text("do as you like")
    (snapshot / "LICENSE").symlink_to("LICENSE.txt")
    (tmp_path / "elsewhere").symlink_to(snapshot)
    for source in (snapshot, tmp_path / "elsewhere"):
        out = tmp_path / f"out-{source.name}"
        out.mkdir()
        write_fused(source, adapter, out, Quantization())
        for name in ("tokenizer.json", "tokenizer_config.json", "LICENSE"):
            assert (out / name).read_bytes() == (snapshot / name).read_bytes()
            assert not (out / name).is_symlink()


def test_half_precision_stays_half_precision_rounded_once(draft: Path, adapter: Path) -> None:
    half = convert(draft, "half", dtype="float16")
    directory, written = fused(half, adapter)
    weights = mx.load(str(directory / "model.safetensors"))
    assert {leaf.dtype for leaf in weights.values()} == {mx.float16}
    assert written.bits_per_weight == 16
    model, _ = mlx_lm.load(str(half))
    model.set_dtype(mx.float32)
    load_adapters(model, str(adapter))
    name = "model.layers.0.mlp.up_proj"
    layer = dict(model.named_modules())[name]
    exact = layer.linear.weight + layer.scale * (layer.lora_b.T @ layer.lora_a.T)
    assert mx.array_equal(weights[f"{name}.weight"], exact.astype(mx.float16))


def test_layers_of_another_type_than_the_rest_keep_it(draft: Path, adapter: Path) -> None:
    weights = dict(mx.load(str(draft / "model.safetensors")))
    mixed = {name: leaf.astype(mx.float32 if "norm" in name else mx.bfloat16) for name, leaf in weights.items()}
    mx.eval(mixed)
    mx.save_safetensors(str(draft / "model.safetensors"), mixed)
    directory, _ = fused(draft, adapter)
    found = mx.load(str(directory / "model.safetensors"))
    assert {name: leaf.dtype for name, leaf in found.items()} == {name: leaf.dtype for name, leaf in mixed.items()}


def test_an_adapted_embedding_and_head_are_fused_too(draft: Path, tmp_path: Path) -> None:
    model, _ = mlx_lm.load(str(draft))
    lora.attach_fresh(model, AdapterConfig(rank=2, scale=3.0, keys=("model.embed_tokens", "lm_head")), seed=0)
    random = {name: mx.random.normal(leaf.shape) for name, leaf in lora.adapter_parameters(model).items()}
    lora.load_parameters(model, random)
    (tmp_path / "odd").mkdir()
    lora.save_adapter(model, tmp_path / "odd")
    directory, _ = fused(draft, tmp_path / "odd")
    assert apart(logits(directory), model(IDS)) < 1e-4 * float(mx.abs(model(IDS)).max().item())


@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (4, 64), (8, 64)])
def test_a_float_draft_is_quantized_as_mlx_lm_quantizes_the_fused_model(
    bits: int, group_size: int, draft: Path, adapter: Path
) -> None:
    directory, written = fused(draft, adapter, Quantization(bits, group_size))
    reference, _ = mlx_lm.load(str(draft), adapter_path=str(adapter))
    layers = [(name, layer.fuse()) for name, layer in reference.named_modules() if hasattr(layer, "fuse")]
    reference.update_modules(tree_unflatten(layers))
    nn.quantize(reference, group_size, bits)
    assert apart(logits(directory), reference(IDS)) < 1e-4
    expected = {"bits": bits, "group_size": group_size, "mode": "affine"}
    assert config_of(directory)["quantization"] == written.quantization == expected
    assert bits < written.bits_per_weight < bits + 3


def test_what_is_not_chosen_is_mlx_lms_default(draft: Path, adapter: Path) -> None:
    found = fused(draft, adapter, Quantization(bits=8))[1].quantization
    assert found == {"bits": 8, "group_size": 64, "mode": "affine"}
    found = fused(draft, adapter, Quantization(group_size=32))[1].quantization
    assert found == {"bits": 4, "group_size": 32, "mode": "affine"}


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_draft_stays_quantized_as_it_was_and_layers_without_an_update_keep_every_bit(
    bits: int, draft: Path, adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = convert(draft, "packed", quantize=True, q_bits=bits, q_group_size=32)
    capsys.readouterr()
    directory, written = fused(packed, adapter)
    assert capsys.readouterr().out == ""  # where --json goes
    assert written.quantization == config_of(packed)["quantization"] == config_of(directory)["quantization"]
    before, after = (load_file(path / "model.safetensors") for path in (packed, directory))
    assert before.keys() == after.keys()
    same = {name for name in before if before[name].tobytes() == after[name].tobytes()}
    assert {name.rpartition(".")[0] for name in before.keys() - same} == {
        name.rpartition(".")[0] for name in load_file(adapter / "adapters.safetensors")
    }
    reference, _ = mlx_lm.load(str(packed), adapter_path=str(adapter))
    layers = [(name, layer.fuse()) for name, layer in reference.named_modules() if hasattr(layer, "fuse")]
    reference.update_modules(tree_unflatten(layers))
    assert apart(logits(directory), reference(IDS)) < 1e-4


def test_a_layer_with_bits_of_its_own_keeps_them(draft: Path, adapter: Path) -> None:
    def own(path: str, _module: nn.Module) -> bool | dict[str, Any]:
        return {"bits": 8, "group_size": 32, "mode": "affine"} if path.endswith("up_proj") else True

    packed = convert(draft, "packed", quantize=True, q_bits=4, q_group_size=64, quant_predicate=own)
    directory, _ = fused(packed, adapter)
    model, _ = mlx_lm.load(str(directory))
    found = {(layer.bits, layer.group_size) for name, layer in model.named_modules() if name.endswith("up_proj")}
    assert found == {(8, 32)}
    assert config_of(directory) == config_of(packed)


def test_a_quantized_draft_can_come_out_float_and_then_nothing_is_lost(draft: Path, adapter: Path) -> None:
    packed = convert(draft, "packed", quantize=True, q_bits=4, q_group_size=32)
    directory, written = fused(packed, adapter, Quantization(dequantize=True))
    assert written == FusedDraft(None, 32)
    assert not {"quantization", "quantization_config"} & config_of(directory).keys()
    assert apart(logits(directory), logits(packed, adapter)) < 1e-4


def test_other_bits_for_a_quantized_draft_keep_its_groups(draft: Path, adapter: Path) -> None:
    packed = convert(draft, "packed", quantize=True, q_bits=4, q_group_size=32)
    directory, written = fused(packed, adapter, Quantization(bits=8))
    assert written.quantization == {"bits": 8, "group_size": 32, "mode": "affine"}
    rough, _ = fused(packed, adapter)
    true = logits(packed, adapter)
    assert apart(logits(directory), true) < apart(logits(rough), true) / 4


def test_a_group_size_that_only_4_bit_floats_have_is_not_taken_over(draft: Path, adapter: Path) -> None:
    packed = convert(draft, "packed", quantize=True, q_mode="nvfp4")
    assert config_of(packed)["quantization"]["group_size"] == 16
    directory, written = fused(packed, adapter, Quantization(bits=8))
    assert written.quantization == {"bits": 8, "group_size": 64, "mode": "affine"}
    assert apart(logits(directory), logits(packed, adapter)) < 0.5


def test_4_bit_floats_are_quantized_again_as_they_were_or_come_out_in_the_drafts_usual_type(
    draft: Path, adapter: Path
) -> None:
    packed = convert(draft, "packed", quantize=True, q_mode="mxfp4")
    directory, written = fused(packed, adapter)
    assert written.quantization == {"bits": 4, "group_size": 32, "mode": "mxfp4"}
    assert logits(directory).shape == logits(packed).shape
    directory, _ = fused(packed, adapter, Quantization(dequantize=True))
    types = {name: leaf.dtype for name, leaf in mx.load(str(directory / "model.safetensors")).items()}
    assert set(types.values()) == {mx.float32}
    assert apart(logits(directory), logits(packed, adapter)) < 1e-4


def test_groups_that_fit_no_layer_are_refused(draft: Path, tmp_path: Path) -> None:
    narrow = write_llama(tmp_path / "narrow")
    adapter = write_lora(tmp_path / "adapter", mlx_lm.load(str(narrow))[0], amount=0.3)
    with pytest.raises(ExportError, match=r"multiple of 128.*choose a smaller --q-group-size \(32, 64, 128\)"):
        fused(narrow, adapter, Quantization(group_size=128))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bits": 7}, "--q-bits is 7, expected one of 2, 3, 4, 5, 6, 8"),
        ({"bits": 0}, "--q-bits is 0"),
        ({"group_size": 48}, "--q-group-size is 48, expected one of 32, 64, 128"),
        ({"bits": 4, "dequantize": True}, "give one"),
        ({"group_size": 32, "dequantize": True}, "give one"),
    ],
)
def test_a_quantization_that_mlx_does_not_know_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Quantization(**fields)


def test_what_the_disk_refuses_is_an_oserror_at_every_file(draft: Path, adapter: Path, tmp_path: Path) -> None:
    for step in range(1, 5):  # weights, config, two of the tokenizer
        (tmp_path / f"full-{step}").mkdir()
        with pytest.raises(OSError, match="No space left"):
            write_fused(draft, adapter, tmp_path / f"full-{step}", Quantization(), files=failing_files(step))


def test_the_draft_itself_is_left_alone(draft: Path, adapter: Path) -> None:
    before = {path: path.read_bytes() for path in [*draft.iterdir(), *adapter.iterdir()]}
    fused(draft, adapter, Quantization(bits=4))
    assert {path: path.read_bytes() for path in [*draft.iterdir(), *adapter.iterdir()]} == before
