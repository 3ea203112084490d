"""Attach, detach, read and write the draft's LoRA adapter. Knows no versions and no training.

The layers are mlx-lm's own. A LoRA layer keeps the frozen layer it stands for, W (out, in) or its quantized form, and
adds `scale · dropout(x) A B` with A (in, rank) and B (rank, out), both float32. B starts at zero, so a fresh adapter
changes nothing. An adapter never lies on an adapter: what a model carries is taken off before another one is put on.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear
from mlx_lm.tuner.lora import LoRAEmbedding, LoRALinear
from mlx_lm.tuner.utils import linear_to_lora_layers

from ..config import Lora
from ..errors import AdapterError
from ..runtime.rng import unchanged
from ..store.atomic import write_new
from ..store.files import FILES, Files
from .adapter_format import CONFIG, WEIGHTS, AdapterConfig, check_leaves, read_config, read_shapes

_LINEAR = (
    nn.Linear,
    nn.QuantizedLinear,
    nn.Embedding,
    nn.QuantizedEmbedding,
    SwitchLinear,
    QuantizedSwitchLinear,
)


def attach_fresh(model: nn.Module, config: AdapterConfig, seed: int) -> None:
    """Put a zero adapter of this shape on `model`; everything else is frozen.

    A is drawn with a key of its own, so the global random state is not touched.

    Raises:
        AdapterError: the model has no layer that can be adapted.
    """
    detach(model)
    _add_layers(model, config, "the configured adapter")
    matrices = sorted((name, leaf.shape) for name, leaf in adapter_parameters(model).items() if ".lora_a" in name)
    keys = mx.random.split(mx.random.key(seed), len(matrices))
    fresh = [(name, _uniform(shape, key)) for (name, shape), key in zip(matrices, keys, strict=True)]
    model.load_weights(fresh, strict=False)
    mx.eval(adapter_parameters(model))


def shape_for(model: nn.Module, wanted: Lora, unfit: Collection[str] = ()) -> AdapterConfig:
    """The shape of a fresh adapter of `model` as configured; with `matrices` all its embedding and head are in it.

    Args:
        model: with or without an adapter.
        wanted: the configuration.
        unfit: keys of layers that `find_unfit` says to leave out.
    """
    shape = AdapterConfig.of(wanted)
    inside, outside = adaptable_keys(model)
    keys = inside if wanted.matrices == "layers" else inside | outside
    if wanted.matrices == "layers" and not inside & set(unfit):
        return shape
    return replace(shape, keys=tuple(sorted(keys - set(unfit))))


def adaptable_keys(model: nn.Module) -> tuple[set[str], set[str]]:
    """Names of linear layers below a transformer layer, each for all of these; and outside of them, by whole names."""
    inside = set().union(*(_adaptable(layer) for layer in model.layers))
    ours = {id(module) for layer in model.layers for module in layer.modules()}
    modules = dict(model.named_modules())
    return inside, {name for name in _adaptable(model) if id(modules[name]) not in ours}


def attach_directory(model: nn.Module, directory: Path) -> AdapterConfig:
    """Put the adapter in `directory` on `model`; everything else is frozen.

    Raises:
        AdapterError: damaged, of another shape, or for another model, naming the field or leaf; `model` is as it was.
    """
    config, shapes = read_config(directory), read_shapes(directory)
    carried = list(_lora_modules(model))
    detach(model)
    try:
        _add_layers(model, config, str(directory))
        expected = {name: tuple(leaf.shape) for name, leaf in adapter_parameters(model).items()}
        check_leaves(shapes, expected, str(directory))
        weights = _read_weights(directory / WEIGHTS)
    except AdapterError:
        detach(model)
        model.update_modules(tree_unflatten(carried))
        raise
    load_parameters(model, weights)
    return config


def detach(model: nn.Module) -> None:
    """Take the adapter off, if there is one: the model is bit for bit what it was before."""
    bare = [(name, _bare(module)) for name, module in _lora_modules(model)]
    model.update_modules(tree_unflatten(bare))


def is_attached(model: nn.Module) -> bool:
    """Whether the model carries an adapter."""
    return next(_lora_modules(model), None) is not None


@contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """Within the block the model has no adapter, or the one that the block puts on it; afterwards its own again."""
    carried = list(_lora_modules(model))
    detach(model)
    try:
        yield
    finally:
        detach(model)
        model.update_modules(tree_unflatten(carried))


@contextmanager
def merged(model: nn.Module, *, copies: bool = True) -> Iterator[None]:
    """Within the block the adapter is part of the weights; afterwards the model is bit for bit what it was.

    A draft's step is so short that two more small products per layer are felt (37% of it on the embedded pair). Layers
    of fewer bits than float32 keep the adapter beside them: an update of a thousandth of the weights loses half of
    itself in bfloat16, and more in a quantized layer. Costs the weights of the others once more while it lasts.

    Args:
        model: with or without an adapter.
        copies: whether it may cost that; else all layers keep the adapter beside them, those of float32 in fewer steps.
    """
    carried = merge(model, copies=copies)
    try:
        yield
    finally:
        model.update_modules(tree_unflatten(carried))


def merge(model: nn.Module, *, copies: bool = True) -> list[tuple[str, nn.Module]]:
    """Make the adapter part of the weights, as `merged` does, for good; returns the layers that there were before."""
    carried = [(name, module) for name, module in _lora_modules(model) if _is_float32(module)]
    together = []
    for name, module in carried:
        decoding = module.fuse() if copies else _beside(module)
        decoding.train(module.training)
        together.append((name, decoding))
    mx.eval([module.parameters() for _, module in together])
    model.update_modules(tree_unflatten(together))
    return carried


def stays_beside(model: nn.Module) -> bool:
    """Whether some of the adapter cannot be `merged`."""
    return not all(_is_float32(module) for _, module in _lora_modules(model))


def adapter_parameters(model: nn.Module) -> dict[str, mx.array]:
    """A and B of every adapted layer by their dotted names: exactly what training may change."""
    return {
        f"{name}.{leaf}": value
        for name, module in _lora_modules(model)
        for leaf, value in tree_flatten({"lora_a": module["lora_a"], "lora_b": module["lora_b"]})
    }


def input_width(model: nn.Module) -> int:
    """The input width that most of the adapted layers have: the hidden size of a transformer.

    Raises:
        AdapterError: it carries none.
    """
    widths = [_width_of(values.shape) for name, values in adapter_parameters(model).items() if ".lora_a" in name]
    if not widths:
        raise AdapterError("the draft carries no adapter; attach one first")
    return statistics.mode(widths)


def load_parameters(model: nn.Module, weights: dict[str, mx.array]) -> None:
    """Set A and B by the names that `adapter_parameters` gives."""
    model.load_weights(list(weights.items()), strict=False)


def set_dropout(model: nn.Module, dropout: float) -> None:
    """Give every adapted layer this dropout on its input; it acts in training mode only, and each keeps its mode."""
    for _, module in _lora_modules(model):
        module.dropout = nn.Dropout(dropout)
        module.train(module.training)


def carried_shape(model: nn.Module) -> AdapterConfig:
    """The shape of the adapter that the model carries, read off its layers.

    Raises:
        AdapterError: it carries none.
    """
    modules = dict(_lora_modules(model))
    if not modules:
        raise AdapterError("the draft carries no adapter; attach one first")
    layers = [dict(_lora_modules(layer)) for layer in model.layers]
    first = next((i for i, adapted in enumerate(layers) if adapted), len(layers) - 1)
    inside = set().union(*layers)
    ours = {id(module) for adapted in layers for module in adapted.values()}
    outside = {name for name, module in modules.items() if id(module) not in ours}
    everything = set().union(*(_adaptable(layer) for layer in model.layers))
    module = next(iter(modules.values()))
    a = tree_flatten({"lora_a": module["lora_a"]})[0][1]
    return AdapterConfig(
        rank=int(a.shape[-2] if a.ndim == 3 else a.shape[-1]),  # experts keep A as (experts, rank, in)
        scale=float(module.scale),
        dropout=round(1.0 - float(module.dropout._p_1), 12),
        num_layers=-1 if first == 0 else len(layers) - first,
        keys=None if inside == everything and not outside else tuple(sorted(inside | outside)),
    )


def save_adapter(model: nn.Module, directory: Path, files: Files = FILES) -> None:
    """Write the adapter that `model` carries into a directory that exists and is not published yet.

    Raises:
        AdapterError: the model carries none.
        OSError: the disk refused.
    """
    config, weights = carried_shape(model), adapter_parameters(model)
    files.produce(directory / WEIGHTS, lambda path: mx.save_safetensors(path, weights, metadata={"format": "mlx"}))
    write_new(directory / CONFIG, (json.dumps(config.to_json(), indent=2, sort_keys=True) + "\n").encode(), files)


class _LinearBeside(nn.Module):  # type: ignore[misc]  # MLX has no types
    """A linear layer of float32 with its adapter beside it: x W + x A B, the scale in B."""

    def __init__(self, linear: nn.Module, a: mx.array, b: mx.array) -> None:
        super().__init__()
        self.bare, self.a, self.b = linear, a, b

    def __call__(self, x: mx.array) -> mx.array:
        return mx.addmm(self.bare(x), x @ self.a, self.b)


class _EmbeddingBeside(nn.Module):  # type: ignore[misc]
    """An embedding of float32 with its adapter beside it, for tokens and as a head."""

    def __init__(self, embedding: nn.Module, a: mx.array, b: mx.array) -> None:
        super().__init__()
        self.bare, self.a, self.b = embedding, a, b

    def __call__(self, x: mx.array) -> mx.array:
        return mx.addmm(self.bare(x), self.a[x], self.b)

    def as_linear(self, x: mx.array) -> mx.array:
        """The logits after hidden states."""
        return mx.addmm(self.bare.as_linear(x), x @ self.b.T, self.a.T)


class HeadParts(NamedTuple):
    """A head as sums of products: x W + (x a) b, and a bias if it has one.

    Attributes:
        bare: holds W (V, D), or its quantized form.
        a, b: (D, rank) and (rank, V), float32, the scale in one of them; None without an adapter.
    """

    bare: nn.Module
    a: mx.array | None = None
    b: mx.array | None = None


def head_parts(module: nn.Module) -> HeadParts:
    """Of a linear layer or an embedding that is used as a head: bare, adapted, or made ready for decoding."""
    if isinstance(module, LoRALinear):
        return HeadParts(module.linear, module.lora_a, module.scale * module.lora_b)
    if isinstance(module, LoRAEmbedding):
        return HeadParts(module.embedding, module.scale * module.lora_b.T, module.lora_a.T)
    if isinstance(module, _LinearBeside):
        return HeadParts(module.bare, module.a, module.b)
    if isinstance(module, _EmbeddingBeside):
        return HeadParts(module.bare, module.b.T, module.a.T)
    return HeadParts(module)


def _beside(module: nn.Module) -> nn.Module:
    """What computes as an adapted layer of float32 does in decoding, in fewer steps; its arrays are the same."""
    bare = _bare(module)
    if isinstance(module, LoRALinear):
        return _LinearBeside(bare, module.lora_a, module.scale * module.lora_b)
    if isinstance(module, LoRAEmbedding):
        return _EmbeddingBeside(bare, module.lora_a, module.scale * module.lora_b)
    return module


def _add_layers(model: nn.Module, config: AdapterConfig, where: str) -> None:
    model.freeze()
    adaptable = set().union(*(_adaptable(layer) for layer in model.layers), _adaptable(model))
    unknown = sorted(set(config.keys or ()) - adaptable)
    if unknown:
        raise AdapterError(
            f"{where}: {unknown[0]} is no linear layer of this draft; was the adapter made for another one?"
        )
    try:
        with unchanged():  # mlx-lm draws a start of its own
            linear_to_lora_layers(model, config.num_layers, config.to_json()["lora_parameters"])
    except ValueError as error:  # keys that name one layer twice
        raise AdapterError(f"{where}: {error}") from None
    if not is_attached(model):
        raise AdapterError(f"{where}: this draft has no linear layer that it could adapt")
    model.train(model.training)  # new layers start in training mode, where dropout acts


def _read_weights(path: Path) -> dict[str, mx.array]:
    """The leaves as float32, evaluated at once: mx.load is lazy, and the file may be another one later."""
    try:
        weights = {name: leaf.astype(mx.float32) for name, leaf in mx.load(str(path)).items()}
        mx.eval(weights)
    except (RuntimeError, ValueError) as error:
        raise AdapterError(f"{path} cannot be loaded: {error}") from None
    for name, leaf in sorted(weights.items()):
        if not mx.all(mx.isfinite(leaf)).item():
            raise AdapterError(f"{path}: {name} holds NaN or infinity; the adapter is damaged")
    return weights


def _lora_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if "lora_a" in module and ("linear" in module or "embedding" in module):
            yield name, module


def _bare(module: nn.Module) -> nn.Module:
    return module.linear if "linear" in module else module.embedding


def _is_float32(module: nn.Module) -> bool:
    return bool(_bare(module).weight.dtype == mx.float32)  # a quantized one holds uint32


def _adaptable(module: nn.Module) -> set[str]:
    """Names under `module` that mlx-lm would adapt when no keys are given, adapted already or not."""
    adapted = {name for name, _ in _lora_modules(module)}
    bare = {name for name, inner in module.named_modules() if hasattr(inner, "to_lora") or isinstance(inner, _LINEAR)}
    return adapted | {name for name in bare if name.rpartition(".")[0] not in adapted}


def _uniform(shape: tuple[int, ...], key: mx.array) -> mx.array:
    """mlx-lm's own start of A: uniform within ±1/√in."""
    bound = 1.0 / math.sqrt(_width_of(shape))
    return mx.random.uniform(-bound, bound, shape, key=key)


def _width_of(shape: tuple[int, ...]) -> int:
    """The inputs of an adapted layer whose A has this shape: (in, rank), of experts (experts, rank, in)."""
    return shape[-1] if len(shape) == 3 else shape[0]
