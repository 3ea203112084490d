"""`check_setup` checks this machine and this configuration; each finding has its remedy. Changes nothing."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from .config import Config, Resolved
from .errors import DraftloopError
from .runtime import blas, memory
from .whereabouts import in_rows, remark

State = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One line of the report; `remedy` is empty where nothing is to be done."""

    name: str
    state: State
    found: str
    remedy: str = ""


def check_setup(resolved: Resolved, data_dir: Path, *, with_pair: bool = True) -> Iterator[Finding]:
    """Every check, one after the other; a problem in one does not keep the others from running.

    Args:
        resolved: the configuration, whose pair is loaded.
        data_dir: where writing is tried.
        with_pair: load both models too.
    """
    yield _configuration(resolved, data_dir)
    yield _platform()
    yield _packages()
    yield _blas()
    try:
        import mlx.core as mx
        import mlx_lm  # noqa: F401 - the checks below need both
    except ImportError as error:
        said = " ".join(str(error).split())
        yield Finding("MLX", "problem", f"cannot be imported: {said}", "run `make setup`")
        yield _writable(data_dir)
        return
    device = mx.default_device()
    if device == mx.cpu:
        yield Finding("device", "ok", f"CPU, {os.cpu_count()} cores; float32 throughout")
    else:
        yield Finding("device", "ok", f"{mx.device_info().get('device_name', 'GPU')} ({device})")
    yield _memory()
    yield _writable(data_dir)
    if with_pair:
        yield from _pair(resolved.config)
    yield from _last_training(data_dir)


def _configuration(resolved: Resolved, data_dir: Path) -> Finding:
    """A file that names no models is a warning: it was probably meant to name them."""
    rows = in_rows(resolved, data_dir)
    found = f"{rows['config']}; models {rows['models']}"
    if resolved.file is not None and remark(resolved):
        return Finding("config", "warning", found, "name models.target and models.draft in it")
    return Finding("config", "ok", found)


def _platform() -> Finding:
    found = f"{platform.system()} {platform.release()} {platform.machine()}, Python {platform.python_version()}"
    if (platform.system(), platform.machine()) == ("Darwin", "x86_64"):
        return Finding("platform", "problem", found, "MLX needs Apple silicon, or Linux")
    return Finding("platform", "ok", found)


def _packages() -> Finding:
    names = ("mlx", "mlx-lm", "numpy", "safetensors", "transformers")
    found = ", ".join(f"{name} {_version(name)}" for name in names)
    missing = "mlx-lm missing" in found or "mlx missing" in found
    return Finding("packages", "problem" if missing else "ok", found, "run `make setup`" if missing else "")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def _blas() -> Finding:
    if not blas.is_needed():
        return Finding("BLAS", "ok", "not needed: matrix products run on the GPU or in Accelerate")
    if blas.loaded():
        whose = "from set-up" if blas.loaded() == blas.OWN else "from the system"
        return Finding("BLAS", "ok", f"OpenBLAS {whose} serves matrix products: {blas.serving_file()}")
    return Finding("BLAS", "warning", "MLX's own reference BLAS, about 30 times slower", blas.remedy())


def _memory() -> Finding:
    device = memory.read_device()
    allowed = memory.budget("auto", device)
    found = f"{device.bytes / memory.GIGABYTE:.1f} GB ({device.figure}); training.memory = auto allows {allowed}"
    if device.bytes < 4 * memory.GIGABYTE:
        return Finding("memory", "warning", found, "enough for the embedded pair; close programs before a real one")
    return Finding("memory", "ok", found)


def _writable(data_dir: Path) -> Finding:
    parent = next(path for path in (data_dir, *data_dir.absolute().parents) if path.is_dir())
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        found = f"{data_dir.absolute()}: {error.strerror}"
        return Finding("data", "problem", found, "choose another place with --data-dir")
    free = shutil.disk_usage(parent).free
    found = f"{data_dir.absolute()} can be written, {free / memory.GIGABYTE:.1f} GB free"
    if free < memory.GIGABYTE:
        return Finding("data", "warning", found, "free some space: adapters and logs need a few hundred MB")
    return Finding("data", "ok", found)


def _pair(config: Config) -> Iterator[Finding]:
    try:
        from .models.pair import bytes_of, describe_caches, load_pair

        pair = load_pair(config.models)
    except DraftloopError as error:
        yield Finding("pair", "problem", str(error), "correct models.target and models.draft")
        return
    vocabulary = len(pair.tokenizer.get_vocab())
    yield Finding(
        "pair",
        "ok",
        f"{config.models.target} + {config.models.draft}: one tokenizer, {vocabulary:,} tokens, {pair.width:,} shared",
    )
    limit = "no limit" if pair.context is None else f"up to {pair.context:,} tokens"
    yield Finding("caches", "ok", f"{describe_caches(pair)}, {limit}")
    yield _learning(config, *(bytes_of(model) for model in (pair.target, pair.draft)))


def _learning(config: Config, target: int, draft: int) -> Finding:
    """What a training beside the server has, while both models are in memory as the server has them."""
    from .serving.child_plan import least_memory, plan_child

    limit = memory.smaller(config.training.memory, config.retrain.max_memory_gb)
    plan = plan_child(memory.bytes_left(memory.budget("auto", memory.read_device())), target, draft, limit)
    models = f"target {memory.gigabytes(target)} GB, draft {memory.gigabytes(draft)} GB"
    if plan is None:
        found = f"{models}: no memory for a training beside the server, which takes {least_memory(draft)}"
        return Finding("serve --learn idle", "warning", found, "train with the server stopped, or take smaller models")
    how = "loads the target once more" if plan.has_target else "does without the target"
    ended = ", and a request ends it" if plan.is_ended else ""
    found = f"{models}: a training beside the server has {plan.memory_gb:.3g} GB, and {how}{ended}"
    return Finding("serve --learn idle", "ok", found)


def _last_training(data_dir: Path) -> Iterator[Finding]:
    """How much time trainings here take, by the last one that made a version."""
    from .training.run import RunDirectory

    for run in reversed(RunDirectory.all(data_dir / "runs")):
        cost = run.cost()
        if cost is not None:
            failures, seconds = cost
            found = f"{seconds / 60:.1f} minutes of work for {failures} failures, in run {run.id}"
            yield Finding("last training", "ok", found)
            return
