"""What the benchmarks of speed share: a pair with a trained adapter, prompts, and ways that take turns."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from draftloop import reference
from draftloop.cli.progress import Steps
from draftloop.config import Models
from draftloop.demo import LoopSettings, loop_config, run_loop
from draftloop.evaluation.throughput import relative_spread
from draftloop.models import manifest
from draftloop.models.pair import Pair, load_pair
from draftloop.prompts.files import read_prompts
from draftloop.prompts.prompt import Prompt, encode_prompt

FAILURES = LoopSettings(weak_prompts=300, own_prompts=300, benchmark_prompts=4, max_tokens=64)


@dataclass(frozen=True)
class Timed:
    """Tokens a second of one way: median of its turns, and half the range of their middle half over that, if any."""

    median: float
    spread: float | None

    @classmethod
    def of(cls, values: list[float]) -> Timed:
        """At least one."""
        return cls(statistics.median(values), relative_spread(values))


def options(description: str) -> argparse.ArgumentParser:
    """The flags that all of them have."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument(
        "--adapter", type=Path, help="directory of an adapter of the embedded pair; else one is trained"
    )
    parser.add_argument("--quick", action="store_true", help="a small run to try the script; writes no results")
    return parser


def trained_pair(adapter: Path | None, quick: bool) -> Pair:
    """The embedded pair with an adapter: the given one, or what 300 prompts of each domain and the defaults give."""
    if adapter is not None or quick:
        return load_pair(Models(), adapter)
    with Steps() as steps, tempfile.TemporaryDirectory(prefix="draftloop-speed-") as folder:
        pair, _ = run_loop(FAILURES, loop_config(FAILURES), Path(folder), steps.at)
        return pair


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
    return ids_of(pair, read_prompts(reference.prompts_file(domain, "benchmark"))[:count])


def ids_of(pair: Pair, prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
    """Prompts as the target reads them; one that it cannot read is left out."""
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
