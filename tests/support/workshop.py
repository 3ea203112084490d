"""What the tests of training share: records of a tiny pair, and a data directory to train in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from builders import make_record
from mlx import nn
from mlx.utils import tree_flatten
from tiny import sampler, tiny_pair

from draftloop.config import Config, Data
from draftloop.data.record_lines import to_line
from draftloop.data.records import Record
from draftloop.data_directory import DataDirectory
from draftloop.models import adapter as lora
from draftloop.models.pair import Pair
from draftloop.store.files import FILES, Files
from draftloop.training.dataset.examples import Example, to_example
from draftloop.training.result import TrainResult
from draftloop.training.train import resume, train

VOCABULARY = 64


def records_of(of: Pair, count: int, /, **overrides: Any) -> list[Record]:
    """Failures with random ids: prompts of 2 to 5 tokens, outputs of 6 to 12; each split and seed has its own texts."""
    seed, split = overrides.pop("seed", 0), overrides.get("split", "train")
    random = np.random.default_rng(seed)
    temperature = overrides.pop("temperature", 0.8)
    found = []
    for number in range(count):
        prompt, output = random.integers(2, 6), random.integers(6, 13)
        values = {
            "prompt": f"{split} {chr(0x4E00 + seed)} {chr(0x4E00 + number)}",
            "prompt_tokens": _ids(random, prompt),
            "target_output": _ids(random, output),
            "draft_output": _ids(random, output),
            "pair": of.identity,
            "sampler": sampler(temperature),
            "log_p": tuple(-float(x) for x in random.random(output)),
            "log_q": tuple(-float(x) for x in random.random(output)),
        }
        found.append(make_record(**{**values, **overrides}))
    return found


def examples_of(pair: Pair, count: int, **overrides: Any) -> list[Example]:
    return [to_example(record, Data().max_output_length) for record in records_of(pair, count, **overrides)]


def snapshot(model: nn.Module) -> dict[str, bytes]:
    """The bytes of every array of a model that is no part of an adapter, by name as without one."""
    arrays = tree_flatten(model.parameters())
    bare = {re.sub(r"\.(linear|embedding)\.", ".", name): value for name, value in arrays if ".lora_" not in name}
    return {name: _bytes(value) for name, value in bare.items()}


def adapter_bytes(model: nn.Module) -> dict[str, bytes]:
    return {name: _bytes(value) for name, value in lora.adapter_parameters(model).items()}


@dataclass
class Workshop:
    """A data directory, and the tiny pair that trains in it; `settings` are of the section training.

    No record is checked unless they say so: the tiny target did not write those of `records_of`.
    """

    root: Path
    settings: dict[str, Any]
    files: Files = FILES

    def __post_init__(self) -> None:
        self.pair = tiny_pair(VOCABULARY)
        self.data = DataDirectory(self.root, Data(replay_capacity=50), self.files)
        self.log, self.replay, self.registry = self.data.log, self.data.replay, self.data.registry
        self.runs = self.data.runs

    @property
    def config(self) -> Config:
        lora_settings = {"rank": 4, **self.settings.get("lora", {})}
        return Config.model_validate(
            {"training": {"answers": 0, "proposals": 0, "spot_check_share": 0, **self.settings, "lora": lora_settings}}
        )

    def write(self, records: Sequence[Record]) -> None:
        """Put records into the log with the splits that they say."""
        self.log.path.parent.mkdir(parents=True, exist_ok=True)
        with self.log.path.open("ab") as file:
            file.writelines(map(to_line, records))

    def train(self, **keywords: Any) -> TrainResult:
        """On the pair as it is, quietly."""
        return train(self.pair, self.data, self.config, **{"quiet": True, **keywords})

    def resume(self, reference: str = "latest", **keywords: Any) -> TrainResult:
        """With models loaded anew."""
        self.pair = tiny_pair(VOCABULARY)
        load = keywords.pop("load", lambda _models: self.pair)
        return resume(reference, self.data, load=load, **{"quiet": True, **keywords})


def _ids(random: np.random.Generator, count: int) -> tuple[int, ...]:
    return tuple(int(i) for i in random.integers(0, VOCABULARY, count))


def _bytes(value: mx.array) -> bytes:
    return bytes(memoryview(value))
