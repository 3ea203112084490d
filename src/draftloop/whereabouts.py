"""Says which configuration, models and data directory a command uses, in words or as JSON. Opens no file.

Without it, only the numbers would show that the embedded pair was used because a file is missing, is empty or names no
models, or that a command in another directory works on other data.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from .config import DEFAULT_FILES, Config, Resolved

_MODELS = ("models.target", "models.draft")


def in_a_line(resolved: Resolved, data_dir: Path) -> str:
    """Configuration, models and data directory as they were given."""
    file = "no configuration here" if resolved.file is None else f"config {resolved.file}"
    file = f"{file} {remark(resolved)}".rstrip()
    models = resolved.config.models
    pair = f"{models.target} + {models.draft}"
    pair = f": the embedded pair, {pair}" if _are_by_default(resolved) else f" · {pair}"
    return f"{file}{pair} · data {data_dir}/"


def of_run(run: str, config: Config, data_dir: Path) -> str:
    """The same of a training that goes on with the settings that it began with."""
    return f"settings of run {run} · {config.models.target} + {config.models.draft} · data {data_dir}/"


def in_rows(resolved: Resolved, data_dir: Path) -> dict[str, str]:
    """The same by name, with absolute paths."""
    where = places(resolved, data_dir)
    pair = " + ".join(where["models"].values())
    return {
        "config": f"{where['config'] or 'none here'} {remark(resolved)}".rstrip(),
        "models": f"{pair} (the embedded pair)" if _are_by_default(resolved) else pair,
        "data": where["data_dir"],
    }


def remark(resolved: Resolved) -> str:
    """What the file lacks, to print behind its name; empty if it, a variable or a flag names both models."""
    missing = [key for key in _MODELS if key not in resolved.given]
    if resolved.file is None:
        return f"(looked for {', '.join(map(str, DEFAULT_FILES))})"
    if not resolved.file_keys:
        return "is empty"
    return f"names no {'models' if len(missing) > 1 else missing[0]}" if missing else ""


def places(resolved: Resolved, data_dir: Path) -> dict[str, Any]:
    """For `--json`: absolute paths, of models that are directories too; `config` is None where no file was read."""
    models = resolved.config.models
    return {
        "config": None if resolved.file is None else str(resolved.file.absolute()),
        "models": {"target": _absolute(models.target), "draft": _absolute(models.draft)},
        "data_dir": str(data_dir.absolute()),
    }


def _are_by_default(resolved: Resolved) -> bool:
    return resolved.given.isdisjoint(_MODELS)


def _absolute(name: str) -> str:
    with suppress(OSError, ValueError):  # a name that no file system takes
        if Path(name).is_dir():
            return str(Path(name).absolute())
    return name
