"""What the benchmarks of speed share: a pair with a trained adapter, prompts, and ways that take turns."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from draftloop import reference
from draftloop.cli.progress import Steps
from draftloop.config import Models
from draftloop.demo import LoopSettings, loop_config, run_loop
from draftloop.models import manifest
from draftloop.models.pair import Pair, load_pair
from draftloop.prompts.files import read_prompts
from draftloop.prompts.prompt import encode_prompt

FAILURES = LoopSettings(weak_prompts=300, own_prompts=300, benchmark_prompts=4, max_tokens=64)


@dataclass(frozen=True)
class Timed:
    """Tokens a second of one way: median of its turns, and half the range of their middle half over that."""

    median: float
    spread: float

    @classmethod
    def of(cls, values: list[float]) -> Timed:
        """At least one."""
        median = statistics.median(values)
        low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else (median, median, median)
        return cls(median, (high - low) / 2 / median)

    def __str__(self) -> str:
        return f"{self.median:,.1f} ± {self.spread:.0%}"


def options(description: str) -> argparse.ArgumentParser:
    """The flags that all of them have."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument(
        "--adapter", type=Path, help="directory of an adapter of the embedded pair; else one is trained"
    )
    parser.add_argument("--quick", action="store_true", help="a small run to try the script; writes no results")
    return parser


def trained_pairs(adapter: Path | None, quick: bool) -> tuple[Pair, Pair]:
    """The embedded pair, as draftloop has it and as mlx-lm does, with an adapter on the draft.

    It is the given one, or what 300 prompts of each domain and the defaults give.
    """
    if adapter is not None or quick:
        return load_pair(Models(), adapter), load_stock(adapter)
    with Steps() as steps, tempfile.TemporaryDirectory(prefix="draftloop-speed-") as folder:
        pair, loop = run_loop(FAILURES, loop_config(FAILURES), Path(folder), steps.at)
        return pair, load_stock(Path(folder) / "adapters" / loop.trained.version)


def load_stock(adapter: Path | None) -> Pair:
    """The embedded pair as mlx-lm has it."""
    return load_pair(Models(), adapter, as_stock=True)


def described(adapter: Path | None) -> str:
    """What a results file says of the adapter."""
    if adapter is None:
        return f"of {FAILURES.weak_prompts} prompts of prose and {FAILURES.own_prompts} of code, with the defaults"
    found = manifest.verify_adapter(adapter)
    if found is None:
        return "given, without a manifest"
    domains = ", ".join(sorted(found.metrics["best"]["by_source"]))
    return f"given: trained on {len(found.record_ids)} failures ({domains}), {found.metrics['step']:,} steps"


def prompt_ids(pair: Pair, domain: str, count: int) -> list[tuple[int, ...]]:
    """The first benchmark prompts of a domain."""
    prompts = read_prompts(reference.prompts_file(domain, "benchmark"))[:count]
    found = [encode_prompt(prompt, pair.tokenizer, chat_template=True, max_length=1 << 20) for prompt in prompts]
    return [tuple(ids) for ids in found if isinstance(ids, list)]


def take_turns(ways: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Tokens a second of each way in each turn; a first turn that does not count warms all up.

    Whatever else runs on the machine meets all ways alike.
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            speed = way()
            if turn:
                found[name].append(speed)
    return found


def ratios(found: Mapping[str, list[float]], ours: str, other: str) -> Timed:
    """Ours over the other's, turn by turn."""
    return Timed.of([one / two for one, two in zip(found[ours], found[other], strict=True)])
