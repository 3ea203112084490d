"""Linear layers of a model that cannot carry an adapter, found by trying one on each. Knows no training.

Some models read the weight of a linear layer themselves, which a LoRA layer has under another name. Through others no
gradient comes: an operation behind the layer has none on this device. A probe of a few tokens tells both. And mlx-lm
reads back only adapters of one A and one B for a layer.
"""

from __future__ import annotations

from collections.abc import Collection

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from ..caches import read_whole
from ..errors import AdapterError
from ..runtime.memory import is_out_of_memory
from . import adapter as lora
from .adapter_format import AdapterConfig

_TOKENS = 4


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
