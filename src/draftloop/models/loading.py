"""Load a model directory with mlx-lm, as data: none of its Python runs unless that is allowed. Knows no pair.

A directory that names Python of its own is refused only where loading needs it. mlx-lm and transformers decide that;
both are given the answer beforehand, so neither asks.
"""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
from mlx import nn
from mlx_lm.utils import load_config

from ..errors import PairError

_FIELDS = (("config.json", "model_file"), ("tokenizer_config.json", "auto_map"), ("config.json", "auto_map"))
_MODULES = (
    ("config.json", "model_type"),
    ("tokenizer_config.json", "chat_template_type"),
    ("tokenizer_config.json", "tool_parser_type"),
)

_LONGEST_REASON = 400  # mlx-lm names every weight that does not fit


def load_directory(
    path: Path, *, trust_remote_code: bool, lazy: bool = False, adapter: Path | None = None
) -> tuple[nn.Module, Any, dict[str, Any]]:
    """The model, the tokenizer and the config of a directory.

    Args:
        path: in mlx-lm's format.
        trust_remote_code: let it run Python of its own, of the model and of the tokenizer.
        lazy: leave the weights on disk until they are used.
        adapter: a directory in mlx-lm's format, put on the model.

    Raises:
        PairError: it cannot be loaded, or not without Python of its own.
    """
    for name, key in _MODULES:
        module = _read(path / name).get(key)
        if isinstance(module, str) and not re.fullmatch(r"[\w.-]+", module):  # mlx-lm imports a module of this name
            raise PairError(f"{path / name}: {key} is {module[:60]!r}, expected a name and no path")
    try:
        model, tokenizer, config = mlx_lm.load(
            str(path),
            {"trust_remote_code": trust_remote_code},
            adapter_path=None if adapter is None else str(adapter),
            lazy=lazy,
            return_config=True,
            trust_remote_code=trust_remote_code,
        )
        tokenizer.encode("a")  # settings that are no numbers fail at their first use
        list(map(int, tokenizer.eos_token_ids))
    except Exception as error:  # a wrong config.json or tokenizer file fails in as many ways as there are libraries
        if not trust_remote_code and "trust_remote_code" in str(error):
            raise PairError(_refusal(path)) from error
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", _LONGEST_REASON, placeholder=" …")
        raise PairError(f"{path} cannot be loaded by mlx-lm: {reason}") from error
    return model, tokenizer, config


def read_model_config(path: Path) -> dict[str, Any]:
    """The config that mlx-lm loads a directory with. Raises PairError: it cannot be read."""
    try:
        config: dict[str, Any] = load_config(path)
    except (OSError, ValueError) as error:
        raise PairError(f"{path / 'config.json'} cannot be read: {error}") from error
    return config


def widen_on_cpu(model: nn.Module) -> None:
    """Make a model float32 where it computes on a CPU: 16-bit matrix products are forty times slower there.

    No weight is evaluated, and quantized ones stay as they are.
    """
    if mx.default_device() == mx.cpu:
        model.set_dtype(mx.float32)


def needs_code(tokenizer: Any, config: dict[str, Any]) -> str | None:
    """The file and key by which Python of a directory's own was run to load it; None where none was."""
    if config.get("model_file") is not None:
        return "config.json: model_file"
    inner = getattr(tokenizer, "_tokenizer", tokenizer)
    if type(inner).__module__.startswith("transformers_modules."):
        return "tokenizer_config.json: auto_map"
    return None


def _refusal(path: Path) -> str:
    named = next(((name, key) for name, key in _FIELDS if _read(path / name).get(key) is not None), None)
    name, key = named or ("config.json", "auto_map")
    value = " ".join(json.dumps(_read(path / name).get(key)).split())
    return (
        f"{path / name} names Python of its own under {key} ({value[:80]}), without which it cannot be loaded, and "
        "models.trust_remote_code is false, so nothing of a model directory runs; set it to true if you trust this "
        "directory, or choose another model"
    )


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none: whoever loads the directory says what is wrong with the file."""
    try:
        parsed = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}
