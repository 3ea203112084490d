"""The config of a model's first layers, from the config of all of them. Pure: knows no file and no MLX.

A config says in one number how many layers there are, and in lists of that length what each one is like. What is said
of layers by their index needs no change: the first ones keep theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_COUNTS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers", "num_transformer_layers")
_PATTERNS = ("hybrid_override_pattern",)  # a letter for each layer; other texts may be as long by chance
_SHARING = ("num_kv_shared_layers", "num_kv_reuse_layers")  # the last ones, which use keys and values from before
_TEXT = "text_config"  # of a model that sees, too


def count_layers(config: Mapping[str, Any]) -> int | None:
    """How many layers a config says that its language model has; None where it does not say."""
    inner = config.get(_TEXT)
    found = _count(inner) if isinstance(inner, Mapping) else None
    return _count(config) if found is None else found


def cut_config(config: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """The config of the same model with its first `layers` alone.

    Args:
        config: a `config.json`.
        layers: at least one, at most as many as there are.
    """
    cut, inner = _cut(config, layers), config.get(_TEXT)
    if isinstance(inner, Mapping):
        cut[_TEXT] = _cut(inner, layers)
    return cut


def _count(part: Mapping[str, Any]) -> int | None:
    counts = (part.get(name) for name in _COUNTS)
    return next((count for count in counts if isinstance(count, int) and count > 0), None)


def _cut(part: Mapping[str, Any], layers: int) -> dict[str, Any]:
    whole = _count(part)
    if whole is None:
        return dict(part)
    cut = {
        name: value[:layers] if _is_by_layer(name, value, whole) else layers if name in _COUNTS else value
        for name, value in part.items()
    }
    for name in _SHARING:
        if isinstance(part.get(name), int):
            cut[name] = max(0, layers - (whole - part[name]))
    return cut


def _is_by_layer(name: str, value: Any, whole: int) -> bool:
    return (
        isinstance(value, list | tuple | str)
        and len(value) == whole
        and (not isinstance(value, str) or name in _PATTERNS)
    )
