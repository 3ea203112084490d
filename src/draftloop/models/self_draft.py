"""A draft that is the target's own first layers, with its last norm and head: the target's arrays, none of them copied.

Nothing of it is trained to be followed by the head, so bare it proposes next to nothing that is accepted; the adapter
that is trained on it does the work. It is a model of the target's class, made with a config that is cut (`cut_config`)
and quantized where the target is, whose every array is the target's of the same name. So it decodes, trains and is
exported as any draft.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from ..caches import read_whole, rewinding_of
from ..errors import PairError
from ..runtime.rng import unchanged
from .cut_config import count_layers, cut_config
from .self_layers import SelfLayers

STARTS_WITH = 1 / 8  # of the target's layers
_LONGEST_REASON = 300


def cut_draft(target: nn.Module, config: Mapping[str, Any], layers: int) -> nn.Module:
    """A model of a target's first `layers`, made of its arrays; frozen, and in evaluation mode.

    Args:
        target: its weights may still be on disk; those that the draft does not use stay there.
        config: that it was loaded with.
        layers: how many, at least one and fewer than it has.

    Raises:
        PairError: these layers alone are no model of its class.
    """
    count = count_layers(config)
    if count is None:
        raise PairError("the target's config.json does not say how many layers it has, so no draft can be cut from it")
    if not 1 <= layers < count:
        raise PairError(
            f"self:{layers} is no draft: the target has {count} layers; expected self:1 to self:{count - 1}"
        )
    own = dict(tree_flatten(target.parameters()))
    try:
        draft = _of_its_class(target, cut_config(config, layers))
        _become_as_loaded(draft, target)
        leaves = tree_flatten(draft.parameters())
        draft.load_weights([(name, _beginning(own[name], leaf.shape, layers / count)) for name, leaf in leaves])
        draft.eval()
        draft.freeze()
    except Exception as error:  # a class fails in its own way on a config that it was not made for
        raise _no_draft(layers, error) from error
    return draft


def check_decodes(draft: nn.Module, layers: int) -> None:
    """Raise PairError unless a draft of so many layers reads tokens, and takes them back exactly.

    Some families say by its place which layer's cache makes the masks of all layers of that kind, so that a draft needs
    a layer of each kind.
    """
    try:
        mx.eval(read_whole(draft, mx.array([[0, 1]])))
        rewinding_of(draft)
    except Exception as error:  # as above
        raise _no_draft(layers, error) from error


def layers_to_start_with(target: nn.Module, config: Mapping[str, Any], wanted: int | None) -> SelfLayers:
    """The number of layers that was given; else an eighth of the target's, before anything was measured.

    Args:
        target, config: as in `cut_draft`.
        wanted: as configured; None leaves it open.

    Raises:
        PairError: no draft can be cut from the target.
    """
    if wanted is not None:
        return SelfLayers(wanted, is_settled=True, why="as configured")
    count = count_layers(config) or 0
    layers = least_layers(target, config, max(1, round(count * STARTS_WITH)))
    why = f"an eighth of the target's {count} layers, or the fewest more that decode, until failures show what is best"
    return SelfLayers(layers, is_settled=False, why=why)


def least_layers(target: nn.Module, config: Mapping[str, Any], at_least: int = 1) -> int:
    """The fewest layers, at least so many, of which a draft decodes. Raises PairError: there is none."""
    count, reason = count_layers(config) or 0, "it has too few layers"
    for layers in range(at_least, count):
        try:
            check_decodes(cut_draft(target, config, layers), layers)
        except PairError as error:
            reason = str(error)
        else:
            return layers
    raise PairError(f"no draft can be cut from the target's {count} layers ({reason}); name a model as models.draft")


def _of_its_class(target: nn.Module, config: dict[str, Any]) -> nn.Module:
    """A model with that config, its weights not evaluated, quantized wherever the target is."""
    with unchanged():
        model: nn.Module = type(target)(_kind_of_arguments(target).from_dict(config))
    of_target = dict(target.named_modules())

    def like_the_target(path: str, layer: nn.Module) -> dict[str, Any] | bool:
        same = of_target.get(path)
        if same is None or "scales" not in same or "scales" in layer:
            return False
        return {"group_size": same.group_size, "bits": same.bits, "mode": same.mode}

    nn.quantize(model, class_predicate=like_the_target)
    return model


def _become_as_loaded(draft: nn.Module, target: nn.Module) -> None:
    """Change in the draft what loading changed in the target: some families see by the weights there are that the head
    is the embedding, drop the module that they made for it, and note so.
    """
    of_target = dict(target.named_modules())
    for path, module in draft.named_modules():
        same = of_target.get(path)
        if same is None or not isinstance(module, type(same)):
            continue
        for name in [name for name in module.children() if name not in same]:
            module.pop(name)
        noted = {name: value for name, value in vars(same).items() if isinstance(value, bool) and name[0] != "_"}
        vars(module).update({name: value for name, value in noted.items() if name in vars(module)})


def _kind_of_arguments(target: nn.Module) -> Any:
    """The class of what mlx-lm made the target from. Several modules share the class of a model, but not this one."""
    kept = (vars(target).get(name) for name in ("args", "config"))
    kinds = [type(one) for one in kept if hasattr(one, "from_dict")]
    return kinds[0] if kinds else sys.modules[type(target).__module__].ModelArgs


def _beginning(leaf: mx.array, shape: tuple[int, ...], share: float) -> mx.array:
    """A leaf as it is; or so much from its beginning, where it holds what belongs to each layer one after the other."""
    if leaf.shape == shape:
        return leaf
    sizes = zip(leaf.shape, shape, strict=False)
    if leaf.ndim != len(shape) or any(want not in (have, share * have) for have, want in sizes):
        raise ValueError(f"a weight of shape {shape} cannot be cut from one of {leaf.shape}")
    return leaf[tuple(slice(size) for size in shape)]


def _no_draft(layers: int, error: Exception) -> PairError:
    reason = textwrap.shorten(f"{type(error).__name__}: {error}", _LONGEST_REASON, placeholder=" …")
    return PairError(
        f"the target's first {layers} layers are no draft ({reason}); take more of them (models.draft: self:N), or "
        "name a model as models.draft"
    )
