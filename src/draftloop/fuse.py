"""An adapter put into its draft's weights, and the whole written as a model that mlx-lm loads. Knows no registry.

The update is added in float32 and rounded once, to the type that the draft's own files have. A quantized layer cannot
take an update as it is: it is dequantized, and by default quantized again in the same way. That rounds away a part of
what was learned, so what comes out has to be measured, not what went in. Layers without an update keep every bit.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
from mlx import nn
from mlx.utils import tree_flatten, tree_map_with_path, tree_unflatten
from mlx_lm.utils import compute_bits_per_weight, dequantize_model, quantize_model, save_config, save_model

from . import lora
from .errors import ExportError
from .store.files import FILES, Files

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
_DEFAULT = {"bits": 4, "group_size": 64}  # mlx-lm's own
_COPIED = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.tiktoken"),
    *("chat_template*", "generation_config.json", "*.py", "LICENSE*", "NOTICE*"),
)


@dataclass(frozen=True)
class Quantization:
    """What becomes of the weights; by default every layer stays as it is, float or quantized.

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
class Written:
    """The quantization that `config.json` tells of, None for float; and bits a weight, scales included."""

    quantization: dict[str, Any] | None
    bits_per_weight: float


def write_fused(
    source: Path,
    adapter: Path,
    directory: Path,
    quantization: Quantization,
    *,
    trust_remote_code: bool = False,
    files: Files = FILES,
) -> Written:
    """Write the draft with the adapter in its weights: config, weights, tokenizer, generation config, chat template.

    Args:
        source: the draft's own directory.
        adapter: an adapter directory that fits it.
        directory: there, empty, and not published yet.
        quantization: of the result.
        trust_remote_code: let `source` run Python of its own.
        files: the seam.

    Raises:
        AdapterError: the adapter does not fit.
        ExportError: no layer can be quantized so.
        OSError: the disk refused.
    """
    model, _, config = mlx_lm.load(str(source), return_config=True, trust_remote_code=trust_remote_code)
    types = {name: leaf.dtype for name, leaf in _floats(model)}
    lora.attach_directory(model, adapter)
    fused_config = fuse(model, config, quantization)
    model.update(tree_map_with_path(partial(_as_stored, types), model.parameters()))
    mx.eval(model.parameters())  # what fails from here on is the disk
    _save(model, fused_config, directory, files)
    for path in _files_beside_the_weights(source):
        files.produce(directory / path.name, partial(shutil.copyfile, path))
    return Written(fused_config.get("quantization"), float(compute_bits_per_weight(model)))


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
    return _quantize(model, float_config, _completed(quantization, config))


def _completed(quantization: Quantization, config: Mapping[str, Any]) -> dict[str, int]:
    """What was not chosen is as the draft has it, or mlx-lm's default where that is nvfp4's own group size, say."""
    own = config.get("quantization") or {}
    bits = quantization.bits or _one_of(BITS, own.get("bits")) or _DEFAULT["bits"]
    group_size = quantization.group_size or _one_of(GROUP_SIZES, own.get("group_size")) or _DEFAULT["group_size"]
    return {"bits": bits, "group_size": group_size}


def _one_of(known: tuple[int, ...], value: int | None) -> int | None:
    return value if value in known else None


def _quantize(model: nn.Module, config: dict[str, Any], parameters: dict[str, int]) -> dict[str, Any]:
    with redirect_stdout(StringIO()):  # mlx-lm says the bits a weight there, where results go
        _, quantized = quantize_model(model, config, **parameters)
    if not any("scales" in layer for layer in model.modules()):
        raise ExportError(
            f"no layer of this draft has rows whose width is a multiple of {parameters['group_size']}, so none can be "
            f"quantized in such groups; choose a smaller --q-group-size ({_listed(GROUP_SIZES)}), or leave it float"
        )
    return dict(quantized)


def _floats(model: nn.Module) -> Iterator[tuple[str, mx.array]]:
    for name, leaf in tree_flatten(model.parameters()):
        if mx.issubdtype(leaf.dtype, mx.floating):
            yield name, leaf


def _as_stored(types: Mapping[str, mx.Dtype], name: str, leaf: mx.array) -> mx.array:
    """A leaf in the type that it, or its layer, has in the draft's files; the usual one where that was no float."""
    if not mx.issubdtype(leaf.dtype, mx.floating):
        return leaf
    layer = name.rpartition(".")[0]
    known = (types[like] for like in (name, f"{layer}.scales", f"{layer}.weight") if like in types)
    return leaf.astype(next(known, None) or Counter(types.values()).most_common(1)[0][0])


def _save(model: nn.Module, config: dict[str, Any], directory: Path, files: Files) -> None:
    vision = "vision_tower" in getattr(model, "model", {})  # as mlx-lm's own `save` decides
    files.produce(directory / "model.safetensors", lambda _: save_model(directory, model))
    files.produce(directory / "config.json", partial(save_config, dict(config), keep_vision_config=vision))


def _files_beside_the_weights(source: Path) -> list[Path]:
    """Copied, not written anew: a tokenizer that went through another version of a library is not surely the same."""
    return sorted({path for pattern in _COPIED for path in source.glob(pattern) if path.is_file()})


def _check(option: str, value: int | None, known: tuple[int, ...]) -> None:
    if value is not None and value not in known:
        raise ExportError(f"{option} is {value}, expected one of {_listed(known)}")


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))
