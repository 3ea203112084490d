"""The demo runs the whole loop on the embedded pair: collect failures, train on them, measure on held-out prompts.

The target was trained on both domains. The draft was never trained on the weak one; the other is the draft's own, and
shows whether the draft forgets anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import reference
from .collection.collect import CollectReport, CollectSettings, collect_data
from .config import Config, Speculative, Training
from .data.log import FailureLog
from .data_directory import DataDirectory
from .decoding.decoder import Settings
from .decoding.generate import decoding_settings
from .evaluation.benchmark import AcceptanceReport, AcceptanceRow, Difference, compare
from .evaluation.live_decoding import samples_from_prompts
from .models.pair import Pair, load_pair
from .prompts.files import read_prompts
from .training.result import TrainResult
from .training.train import train

Step = Callable[[str, int, int], None]
"""Called with the work, the number of pieces that are done and their total."""


@dataclass(frozen=True)
class LoopSettings:
    """How many prompts and tokens. The sampler is the configuration's; lengths in tokens."""

    weak_prompts: int
    own_prompts: int
    benchmark_prompts: int
    max_tokens: int
    num_draft_tokens: tuple[int, ...] = (4,)
    seed: int = 0


DEMO = LoopSettings(weak_prompts=100, own_prompts=25, benchmark_prompts=40, max_tokens=64)


@dataclass(frozen=True)
class LoopResult:
    """One turn of the loop: what was collected and trained, and both domains before and after."""

    collected: dict[str, CollectReport]
    trained: TrainResult
    reports: dict[str, AcceptanceReport]
    seconds: float

    def row(self, domain: str, adapter: bool, rule: str = "rejection", k: int = 4) -> AcceptanceRow:
        """The measurement of one domain, with the adapter or without."""
        rows = self.reports[domain].results
        return next(r for r in rows if (r.adapter != "none", r.rule, r.num_draft_tokens) == (adapter, rule, k))

    def change(self, domain: str, rule: str = "rejection", k: int = 4) -> Difference:
        """Adapter minus bare draft in one domain."""
        return next(c for c in self.reports[domain].comparison if (c.rule, c.num_draft_tokens) == (rule, k))

    def to_json(self) -> dict[str, Any]:
        """What `demo --json` prints."""
        weak, own = reference.WEAK_DOMAIN, reference.OWN_DOMAIN
        change = self.change(weak)
        return {
            **self._before_and_after(weak),
            "comparison": {
                "delta_acceptance_length": change.delta_acceptance_length,
                "ci_low": change.ci_low,
                "ci_high": change.ci_high,
                "delta_acceptance_per_position": change.delta_acceptance_per_position,
                "position_ci_low": change.position_ci_low,
                "position_ci_high": change.position_ci_high,
            },
            "other_domain": self._before_and_after(own),
            "conditions": {domain: report.conditions for domain, report in self.reports.items()},
            "version": self.trained.version,
            "seconds": self.seconds,
        }

    def _before_and_after(self, domain: str) -> dict[str, dict[str, float]]:
        rows = {"base": self.row(domain, False), "adapter": self.row(domain, True)}
        names = ("acceptance_per_position", "acceptance_rate", "acceptance_length")
        return {side: {name: getattr(row, name) for name in names} for side, row in rows.items()}


def short_training(seed: int) -> Training:
    """A short training for somebody who waits: a quarter of the default's steps, and few new samples."""
    return Training(seed=seed, epochs=16, answers=1, proposals=1)


def loop_config(settings: LoopSettings, training: Training | None = None) -> Config:
    """The defaults on the embedded pair, with the loop's lengths."""
    speculative = Speculative(
        max_tokens=settings.max_tokens, num_draft_tokens=settings.num_draft_tokens[0], seed=settings.seed
    )
    return Config(speculative=speculative, training=training or Training(seed=settings.seed))


def run_loop(settings: LoopSettings, config: Config, data_dir: Path, step: Step) -> tuple[Pair, LoopResult]:
    """Collect, train and measure in `data_dir`.

    Args:
        settings: how much.
        config: by `loop_config`.
        data_dir: empty or new; all that is made lies there.
        step: progress.

    Returns:
        The pair with the new adapter on its draft, and the results.
    """
    began = time.perf_counter()
    data = DataDirectory(data_dir, config.data)
    pair = load_pair(config.models, names=data.names)
    decoding = decoding_settings(config.speculative)
    counts: dict[str, int] = {reference.WEAK_DOMAIN: settings.weak_prompts, reference.OWN_DOMAIN: settings.own_prompts}
    collected = {
        domain: collect_domain(pair, data.log, domain, count, decoding, config, step)
        for domain, count in counts.items()
    }
    trained = train(pair, data, config, on_step=lambda done, total: step("training", done, total))
    path = data.registry.root / trained.version
    reports: dict[str, AcceptanceReport] = {}
    for domain in reference.DOMAINS:
        reports[domain] = measure_domain(pair, domain, settings, decoding, (trained.version, path), step)
    loop = LoopResult(collected, trained, reports, time.perf_counter() - began)
    return pair.with_adapter(path, trained.version), loop


def collect_domain(
    pair: Pair, log: FailureLog, domain: str, count: int, decoding: Settings, config: Config, step: Step
) -> CollectReport:
    """Collect from the first `count` collecting prompts of a domain, with the domain's name as source."""
    prompts = read_prompts(reference.prompts_file(domain, "collect"))[:count]
    settings = CollectSettings(decoding, source=domain, max_prompt_length=config.data.max_prompt_length)
    what = f"collecting {domain}"
    return collect_data(
        pair, prompts, log, settings, None, lambda report, _: step(what, report.generations, len(prompts))
    )


def measure_domain(
    pair: Pair, domain: str, settings: LoopSettings, decoding: Settings, adapter: tuple[str, Path], step: Step
) -> AcceptanceReport:
    """Measure both drafts on the target's outputs for the domain's benchmark prompts."""
    prompts = read_prompts(reference.prompts_file(domain, "benchmark"))[: settings.benchmark_prompts]
    done = 0

    def count(_tokens: int) -> None:
        nonlocal done
        done += 1
        step(f"generating {domain} to measure on", done, len(prompts))

    samples, _ = samples_from_prompts(
        pair, prompts, decoding, chat_template=True, max_prompt_length=1 << 20, on_text=count
    )
    return compare(pair, samples, "auto", settings.num_draft_tokens, adapter, seed=settings.seed)
