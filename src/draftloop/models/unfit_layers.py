"""Linear layers of a model that cannot carry an adapter, found by trying one on each. Knows no training.

Some models read the weight of a linear layer themselves, which a LoRA layer has under another name. Through others no
gradient comes: an operation behind the layer has none on this device. A probe of a few tokens tells both. And mlx-lm
reads back only adapters of one A and one B for a layer. Another probe tells whether a gradient comes from earlier
tokens: where keys and values are rounded it does not, and an adapter learns from each token's own position alone.
"""

from __future__ import annotations

from collections.abc import Collection

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten

from ..caches import read_whole
from ..errors import AdapterError
from ..runtime.memory import is_out_of_memory
from . import adapter as lora
from .adapter_format import AdapterConfig

_TOKENS = 4
_EMBEDDINGS = (nn.Embedding, nn.QuantizedEmbedding)


def find_unfit(model: nn.Module) -> dict[str, str]:
    """Keys of the layers that an adapter has to leave out, each with the reason; the model is as it was.

    Raises:
        AdapterError: there is no layer that could carry one.
    """
    inside, outside = lora.adaptable_keys(model)
    keys = sorted(inside | outside)
    with lora.without_adapter(model):
        if _problem(model, keys) is None:
            return {}
        found = {key: problem for key in keys if (problem := _problem(model, [key])) is not None}
    if len(found) == len(keys):
        raise AdapterError(
            f"no layer of this draft can be trained: {next(iter(found.values()), 'it has no linear layer')}"
        )
    return found


def learns_from_earlier_tokens(model: nn.Module) -> bool:
    """Whether the gradient of what the model says of a token comes from the tokens before it; the model is as it was.

    True also where that cannot be asked, because the model has no embedding of MLX's own kinds, or because no
    gradient comes to it, in which case `find_unfit` names the layers.
    """
    tokens = mx.arange(_TOKENS)[None]
    embeddings = [(module, type(module)) for module in model.modules() if isinstance(module, _EMBEDDINGS)]

    def last(shifts: mx.array) -> mx.array:
        try:
            for module, own in embeddings:
                module.__class__ = _shifted(own, shifts)
            return mx.square(read_whole(model, tokens)[0, -1].astype(mx.float32)).mean()
        finally:
            for module, own in embeddings:
                module.__class__ = own

    try:
        found = np.array(mx.grad(last)(mx.zeros(_TOKENS)))
    except (TypeError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        return True
    return not embeddings or bool(found[:-1].all())


def _shifted(own: type[nn.Module], shifts: mx.array) -> type[nn.Module]:
    """The class of an embedding whose first coordinate has something added at each position."""

    class Shifted(own):  # type: ignore[misc]
        def __call__(self, tokens: mx.array) -> mx.array:
            found: mx.array = super().__call__(tokens)
            first = mx.arange(found.shape[-1]) == 0
            return found + (shifts[:, None] * first).astype(found.dtype)

    return Shifted


def _problem(model: nn.Module, keys: Collection[str]) -> str | None:
    """Why no adapter can be trained on these layers; None where it can."""
    shape = AdapterConfig(rank=1, scale=1.0, dropout=0.0, num_layers=-1, keys=tuple(keys))
    was_training = model.training

    def loss(model: nn.Module) -> mx.array:
        return mx.square(read_whole(model, mx.arange(_TOKENS)[None]).astype(mx.float32)).mean()

    try:
        lora.attach_fresh(model, shape, seed=0)
        if any(name.rpartition(".")[2] not in ("lora_a", "lora_b") for name in lora.adapter_parameters(model)):
            return "its adapter is of several matrices, which mlx-lm does not load"
        model.train()
        value, gradients = nn.value_and_grad(model, loss)(model)
        mx.eval(value, gradients)
    except (AdapterError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise  # which says nothing of the layers
        return " ".join(str(error).split())
    finally:
        model.train(was_training)
        lora.detach(model)
    finite = all(bool(mx.all(mx.isfinite(leaf)).item()) for _, leaf in tree_flatten(gradients))
    return None if finite else "its gradient is not finite"
