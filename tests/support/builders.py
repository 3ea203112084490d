"""What several tests build: records, a small adapter directory, and files that fail when they are told to. No mlx."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from safetensors.numpy import save_file

from draftloop.data.records import Disagreement, PairId, Record, Sampler
from draftloop.store.atomic import write_new
from draftloop.store.files import FILES, Files

OPERATIONS = frozenset(
    {
        "make_directory",
        "make_private",
        "open",
        "write",
        "produce",
        "truncate",
        "sync",
        "sync_directory",
        "rename",
        "remove",
    }
)
_ids = itertools.count(1)


def make_record(**overrides: Any) -> Record:
    """A record that holds together: rounds and disagreements follow from the outputs and K unless they are given.

    By default six tokens at K = 4 with one rejection, at position 2.
    """
    target = overrides.get("target_output", (5, 6, 42, 8, 9, 10))
    draft = overrides.get("draft_output", target if "target_output" in overrides else (5, 6, 7, 8, 9, 10))
    rounds = tuple(_rounds(draft, target, overrides.get("num_draft_tokens", 4)))
    values: dict[str, Any] = {
        "id": f"{next(_ids):032x}",
        "prompt": "What is Python?",
        "prompt_tokens": (1, 2, 3),
        "draft_output": draft,
        "target_output": target,
        "disagreements": tuple(_disagreements(draft, target, rounds)),
        "sampler": Sampler(temperature=0.8, top_p=1.0, min_p=0.0, top_k=0, seed=7),
        "rule": "rejection",
        "num_draft_tokens": 4,
        "rounds": rounds,
        "log_p": tuple(-0.5 - i / 7 for i in range(len(target))),
        "log_q": tuple(-0.6 - i / 3 for i in range(len(target))),
        "finish": "stop",
        "pair": PairId(target="a" * 64, draft="b" * 64, tokenizer="c" * 64),
        "adapter": None,
        "split": "train",
        "source": "default",
        "time": 1_700_000_000.25,
        "run_seed": 3,
    }
    return Record(**{**values, **overrides})


def _rounds(draft: tuple[int, ...], target: tuple[int, ...], k: int) -> Iterator[tuple[int, int]]:
    start = 0
    while start < len(target):
        drafted = min(k, len(target) - start)
        proposals = range(start, start + drafted)
        accepted = next((i for i, at in enumerate(proposals) if draft[at] != target[at]), drafted)
        yield drafted, accepted
        start += accepted + 1


def _disagreements(
    draft: tuple[int, ...], target: tuple[int, ...], rounds: tuple[tuple[int, int], ...]
) -> Iterator[Disagreement]:
    start = 0
    for drafted, accepted in rounds:
        at = start + accepted
        if accepted < drafted:
            yield Disagreement(at, draft[at], target[at], -3.25, -0.25, -0.125, None)
        start = at + 1


def write_adapter(directory: Path, value: float = 0.0, files: Files = FILES) -> None:
    """A small adapter in mlx-lm's format whose every weight is `value`, written as the trainer does it."""
    weights = {
        "model.layers.0.self_attn.q_proj.lora_a": np.full((8, 2), value, np.float32),
        "model.layers.0.self_attn.q_proj.lora_b": np.full((2, 8), value, np.float32),
    }
    files.produce(directory / "adapters.safetensors", lambda path: save_file(weights, path))
    parameters = {"rank": 2, "scale": 2.0, "dropout": 0.0}
    config = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": parameters}
    write_new(directory / "adapter_config.json", orjson.dumps(config), files)


class NoSync(Files):
    """Files that leave the syncing out, where no crash of the kernel is at stake and it would only cost time."""

    def sync(self, descriptor: int, full: bool = False) -> None:
        pass


NO_SYNC = NoSync()


class RecordedSyncs(Files):
    """Files that note of every sync, of files and of directories, whether it was to be a full one."""

    def __init__(self) -> None:
        self.full: list[bool] = []

    def sync(self, descriptor: int, full: bool = False) -> None:
        self.full.append(full)


def _nothing(_number: int, _name: str) -> None:
    """Let the operation be."""


class CountingFiles(NoSync):
    """Files that number their operations from 1 and let `before(number, name)` and `after(number, name)` interfere."""

    def __init__(
        self, before: Callable[[int, str], None] = _nothing, after: Callable[[int, str], None] = _nothing
    ) -> None:
        self.names: list[str] = []
        self._before = before
        self._after = after

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name not in OPERATIONS:
            return value

        def numbered(*args: Any, **kwargs: Any) -> Any:
            self.names.append(name)
            number = len(self.names)
            self._before(number, name)
            result = value(*args, **kwargs)
            self._after(number, name)
            return result

        return numbered


def failing_files(at: int, for_good: bool = False) -> CountingFiles:
    """Files whose operation number `at` (and, `for_good`, every later one) says that the disk is full."""

    def fail(number: int, _name: str) -> None:
        if number == at or (for_good and number > at):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return CountingFiles(fail)
