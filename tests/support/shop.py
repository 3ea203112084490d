"""What the tests of unattended retraining share: a data directory with generations of a small real pair."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from draftloop.collection.collect import CollectReport, CollectSettings, collect_data
from draftloop.config import Config, Models
from draftloop.data_directory import DataDirectory
from draftloop.decoding.draft_length import LatencyProfile
from draftloop.decoding.generate import decoding_settings
from draftloop.evaluation.gate_target import LoadedTarget, Timing
from draftloop.models import adapter as lora
from draftloop.models.adapter_format import AdapterConfig
from draftloop.models.pair import Pair, load_pair
from draftloop.prompts.prompt import Prompt
from draftloop.retraining.gate_step import watch_from_now
from draftloop.retraining.run import retrain
from draftloop.retraining.work import RetrainResult

WORDS = ("red", "green", "blue", "dog", "cat", "sun", "moon", "tree", "house", "river")
PROMPTS = [Prompt(f"{a} {b}") for a in WORDS for b in WORDS]
LATER_WORDS = ("stone", "wind", "bread", "chair", "snow", "lamp", "horse", "glass", "road", "bell")
LATER = [Prompt(f"{a} {b}") for a in LATER_WORDS for b in LATER_WORDS]
"""Prompts that are none of the others."""


def config_of(models: Models, **sections: Mapping[str, Any]) -> Config:
    """Quick to train, and sure to learn something on the small pair."""
    training = {
        "lora": {"rank": 8, "matrices": "all"},
        "epochs": 16,
        "learning_rate": 0.005,
        "min_failure_cases": 10,
        "answers": 0,
        "proposals": 0,
    }
    values: dict[str, dict[str, Any]] = {
        "models": models.model_dump(),
        "speculative": {"max_tokens": 16},
        "training": training,
        # Whatever the records' ids, which decide on order and replay, p was 0.01 to 0.07 against alpha_1 = 0.18.
        "gate": {"live_prompts": 2, "alpha": 0.3, "max_drop_share": 0.1},
        "retrain": {"min_interval_minutes": 0.0, "niceness": 0},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return Config.model_validate(values)


def fixed_costs(_pair: Pair, most: int) -> LatencyProfile:
    """A machine that always takes the same time."""
    return LatencyProfile(0.001, tuple(0.01 + 0.0001 * k for k in range(most + 1)))


@dataclass
class Shop:
    """A data directory, and how it is retrained."""

    data: DataDirectory
    config: Config

    def retrain(self, timing: Timing | None = fixed_costs, **options: Any) -> RetrainResult:
        """One run, on a machine whose costs are fixed."""
        return retrain(self.data, self.config, **{"target": LoadedTarget(timing), **options})

    def collect(self, prompts: list[Prompt], source: str = "default", seed: int = 0, top_k: int = 0) -> CollectReport:
        """Generate with the champion, as `collect-data` does; `top_k` tokens of the target's distributions are kept."""
        path = self.data.registry.resolve("champion")
        pair = load_pair(self.config.models, path, path.name if path else None, names=self.data.names)
        decoding = decoding_settings(self.config.speculative)
        decoding = replace(decoding, sampler=replace(decoding.sampler, seed=seed), teacher_top_k=top_k)
        settings = CollectSettings(decoding, source=source)
        return collect_data(pair, prompts, self.data.log, settings, blobs=self.data.blobs)

    def add_version(self, size: float, seed: int = 0, **fields: Any) -> str:
        """A version whose update is noise of this size; 0 leaves the draft as it is."""
        pair = load_pair(self.config.models, names=self.data.names)
        lora.attach_fresh(pair.draft, AdapterConfig(rank=8, scale=2.0), seed)
        keys = mx.random.split(mx.random.key(seed + 1), 1000)
        noise = {
            name: size * mx.random.normal(leaf.shape, key=keys[i])
            for i, (name, leaf) in enumerate(sorted(lora.adapter_parameters(pair.draft).items()))
            if name.endswith("lora_b")
        }
        lora.load_parameters(pair.draft, noise)
        manifest = {"pair": pair.identity, "parent": self.data.registry.champion(), **fields}
        return self.data.registry.create(lambda path: lora.save_adapter(pair.draft, path), manifest).name

    def copy(self, root: Path) -> Shop:
        """The same in a directory of its own."""
        shutil.copytree(self.data.root, root)
        return Shop(DataDirectory(root), self.config)


def last_line(shop: Shop) -> dict[str, Any]:
    return shop.data.audit.entries()[-1]


def never(*_arguments: Any) -> Any:
    raise AssertionError("no model was to be loaded")


def promote_by_hand(shop: Shop, version: str) -> None:
    """As `adapters promote` does."""
    before = shop.data.registry.pointer()
    pointer = shop.data.registry.promote(version)
    shop.data.verdicts.give_by_hand(version, before.champion, before.sequence, "by hand")
    watch_from_now(shop.data, shop.config, pointer)


def flip_a_bit(shop: Shop, version: str) -> None:
    path = shop.data.registry.root / version / "adapters.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
