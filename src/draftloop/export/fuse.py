"""Fuse an adapter into its draft's weights, and write the result as a model that mlx-lm loads. Knows no registry.

The update is added in float32 and rounded once, to the type that the draft's own files have. A quantized layer cannot
take an update as it is: it is dequantized, and by default quantized again in the same way. That rounds away a part of
what was learned, so what comes out has to be measured, not what went in. Layers without an update keep every bit.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten, tree_map_with_path, tree_unflatten
from mlx_lm.utils import compute_bits_per_weight, dequantize_model, quantize_model, save_config, save_model

from ..errors import ExportError
from ..models import adapter as lora
from ..models.cut_config import cut_config
from ..models.loading import load_directory, needs_code
from ..models.self_draft import cut_draft
from ..store.files import FILES, Files

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
_DEFAULT = {"bits": 4, "group_size": 64}  # mlx-lm's own
_COPIED = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.tiktoken"),
    *("chat_template*", "generation_config.json", "LICENSE*", "NOTICE*"),
)
_DATA = frozenset(("", ".json", ".jsonl", ".txt", ".md", ".model", ".tiktoken", ".jinja"))  # the endings of no program
_CODE = "auto_map"  # of a config: where Python lies that is not copied


@dataclass(frozen=True)
class Quantization:
    """How the weights are stored; by default every layer stays as it is, float or quantized.

    Attributes:
        bits: quantize every layer that can be to so many; None with a group size: as the draft, or 4.
        group_size: weights that share a scale; None with bits: as the draft, or 64.
        dequantize: leave every layer float.

    Raises:
        ExportError: a number that MLX does not know, or both quantized and float.
    """

    bits: int | None = None
    group_size: int | None = None
    dequantize: bool = False

    def __post_init__(self) -> None:
        _check("--q-bits", self.bits, BITS)
        _check("--q-group-size", self.group_size, GROUP_SIZES)
        if self.dequantize and self.chosen:
            raise ExportError("--dequantize leaves the weights float, --q-bits and --q-group-size quantize; give one")

    @property
    def chosen(self) -> bool:
        """Whether the weights are to be quantized in a way that was asked for."""
        return self.bits is not None or self.group_size is not None


@dataclass(frozen=True)
class FusedDraft:
    """The quantization that `config.json` tells of, None for float; and bits a weight, scales included."""

    quantization: dict[str, Any] | None
    bits_per_weight: float


def write_fused(
    source: Path,
    adapter: Path,
    directory: Path,
    quantization: Quantization,
    *,
    layers: int | None = None,
    trust_remote_code: bool = False,
    files: Files = FILES,
) -> FusedDraft:
    """Write the draft with the adapter in its weights: config, weights, tokenizer, generation config, chat template.

    Args:
        source: the draft's own directory.
        adapter: an adapter directory that fits it.
        directory: there, empty, and not published yet.
        quantization: of the result.
        layers: how many of the source's first ones are the draft; None is all.
        trust_remote_code: let `source` run Python of its own.
        files: the seam.

    Raises:
        AdapterError: the adapter does not fit.
        ExportError: no layer can be quantized so, or the draft needs Python of its own, or has links to elsewhere.
        PairError: the source cannot be loaded.
        OSError: the disk refused.
    """
    model, tokenizer, config = load_directory(source, trust_remote_code=trust_remote_code)
    if (key := needs_code(tokenizer, config)) is not None:
        raise ExportError(
            f"{source} runs Python of its own ({key}), which a fused draft would need too, and none is copied; export "
            "the adapter alone, without --fuse"
        )
    if layers is not None:
        model, config = cut_draft(model, config, layers), cut_config(config, layers)
    beside = _files_beside_the_weights(source)
    leaves = tree_flatten(model.parameters())
    types = {name: leaf.dtype for name, leaf in leaves if mx.issubdtype(leaf.dtype, mx.floating)}
    lora.attach_directory(model, adapter)
    fused_config = fuse(model, config, quantization)
    model.update(tree_map_with_path(partial(_as_stored, types), model.parameters()))
    mx.eval(model.parameters())  # what fails from here on is the disk
    kept_config = {key: value for key, value in fused_config.items() if key != _CODE}
    vision = "vision_tower" in getattr(model, "model", {})  # as mlx-lm's own `save` decides
    files.produce(directory / "model.safetensors", lambda _: save_model(directory, model))
    files.produce(directory / "config.json", partial(save_config, kept_config, keep_vision_config=vision))
    for path in beside:
        files.produce(directory / path.name, partial(_copy, path))
    return FusedDraft(fused_config.get("quantization"), float(compute_bits_per_weight(model)))


def fuse(model: nn.Module, config: Mapping[str, Any], quantization: Quantization) -> dict[str, Any]:
    """Replace every adapted layer of `model` by one layer with the update in it; its floats are float32 afterwards.

    Args:
        model: a draft with its adapter on.
        config: of the draft.
        quantization: of the result.

    Returns:
        The result's config.

    Raises:
        ExportError: no layer can be quantized so.
    """
    anew = quantization.dequantize or quantization.chosen
    if anew:
        dequantize_model(model)
    model.set_dtype(mx.float32)
    fused = [(name, layer.fuse()) for name, layer in model.named_modules() if hasattr(layer, "fuse")]
    model.update_modules(tree_unflatten(fused))
    if not anew:
        return dict(config)
    float_config = {name: value for name, value in config.items() if not name.startswith("quantization")}
    if quantization.dequantize:
        return float_config
    # What was not chosen is as the draft has it, or mlx-lm's default where that is nvfp4's own group size, say.
    own = config.get("quantization") or {}
    bits = quantization.bits or _one_of(BITS, own.get("bits")) or _DEFAULT["bits"]
    group_size = quantization.group_size or _one_of(GROUP_SIZES, own.get("group_size")) or _DEFAULT["group_size"]
    with redirect_stdout(StringIO()):  # mlx-lm says the bits a weight there, where results go
        _, quantized = quantize_model(model, float_config, group_size=group_size, bits=bits)
    if not any("scales" in layer for layer in model.modules()):
        raise ExportError(
            f"no layer of this draft has rows whose width is a multiple of {group_size}, so none can be quantized in "
            f"such groups; choose a smaller --q-group-size ({_listed(GROUP_SIZES)}), or leave it float"
        )
    return dict(quantized)


def _one_of(known: tuple[int, ...], value: int | None) -> int | None:
    return value if value in known else None


def _as_stored(types: Mapping[str, mx.Dtype], name: str, leaf: mx.array) -> mx.array:
    """A leaf in the type that it, or its layer, has in the draft's files; the usual one where that was no float."""
    if not mx.issubdtype(leaf.dtype, mx.floating):
        return leaf
    layer = name.rpartition(".")[0]
    known = (types[like] for like in (name, f"{layer}.scales", f"{layer}.weight") if like in types)
    return leaf.astype(next(known, None) or Counter(types.values()).most_common(1)[0][0])


def _files_beside_the_weights(source: Path) -> list[Path]:
    """Copied, not written anew: a tokenizer that went through another version of a library is not surely the same."""
    copied = {path for pattern in _COPIED for path in source.glob(pattern) if path.is_file()}
    kept = sorted(path for path in copied if path.suffix.lower() in _DATA)
    homes = {source.resolve()}
    if source.resolve().parent.name == "snapshots":  # of the Hugging Face cache, whose files are links to its blobs
        homes.add(source.resolve().parents[1] / "blobs")
    for path in kept:
        if homes.isdisjoint(path.resolve().parents):
            raise ExportError(
                f"{path} is a link to {path.resolve()}, outside of the model's directory, and an export is made to be "
                "given away; put the file itself there"
            )
    return kept


def _copy(source: Path, to: str) -> None:
    """The very bytes, but for a tokenizer's config that names Python: it is left out, and so must its name be."""
    if source.name == "tokenizer_config.json":
        config = json.loads(source.read_bytes())
        if _CODE in config:
            Path(to).write_text(json.dumps({key: value for key, value in config.items() if key != _CODE}, indent=2))
            return
    shutil.copyfile(source, to)


def _check(option: str, value: int | None, known: tuple[int, ...]) -> None:
    if value is not None and value not in known:
        raise ExportError(f"{option} is {value}, expected one of {_listed(known)}")


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))
