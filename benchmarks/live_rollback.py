"""A champion that is made worse by hand is rolled back without one: python benchmarks/live_rollback.py

A draft is trained on the embedded pair, and noise on its LoRA weights makes worse ones, each with a seed of its own.

Decisions: all worse drafts and the good one are scored on the same real outputs of benchmark prompts, which stand for
held-out ones. They come in a random order, from one source, and the real looks are made as they are due (`gate_looks`),
without any alarm of drift. No server takes part.

Live: a server serves the good draft, the first of the worse ones is put into use by the endpoint for that, and prompts
that were never asked before are sent until the good one is back. The log itself holds out a fifth of them. This is done
with one draft, because it takes minutes.
"""

from __future__ import annotations

import prepared  # noqa: F401

# isort: split
import argparse
import random
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gate_looks
import mlx.core as mx
import numpy as np
import results
from gate_pool import PoolSettings, rounds_of, sampled
from gate_worlds import FloatArray, K
from live_world import live_server
from results import Figure

from draftloop import reference
from draftloop.cli.progress import Steps
from draftloop.cli.tables import print_table
from draftloop.demo import LoopSettings, loop_config, run_loop, short_training
from draftloop.evaluation.paired_rounds import ScoredOutput
from draftloop.models import adapter as lora
from draftloop.models.pair import Pair
from draftloop.prompts.files import read_prompts
from draftloop.status import read_overview

DRAFTS, TEXTS, TOKENS = 20, 150, 64  # worse ones; benchmark prompts of each domain; tokens of an output
WEAK, OWN = 100, 25  # prompts of each domain that the good draft learns from
NOISE = 0.5  # standard deviation, as a share of the root mean square of each matrix
MOST = gate_looks.SOON  # held-out prompts within which it must go back
PIECE, IDLE_MINUTES = 30, 0.02  # prompts between two rests
SETTINGS = {  # the child looks, and does not train
    "serve.admin": "true",
    "training.min_failure_cases": 100_000,
    "drift.min_failure_cases": 100_000,
}


@dataclass(frozen=True)
class Scored:
    """Outputs under a worse draft and under the good one: tokens (n,), rounds (n, K)."""

    tokens: FloatArray
    worse: FloatArray
    good: FloatArray

    @property
    def loss(self) -> float:
        """The share of the acceptance length that the noise takes."""
        return float(1 - self.good[:, K - 1].sum() / self.worse[:, K - 1].sum())


@dataclass(frozen=True)
class Live:
    """What a server did: whether it went back, and the prompts until then, held out and in all."""

    went_back: bool
    heldout: int
    asked: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small run to try the script; writes no results")
    quick = parser.parse_args().quick
    drafts, texts = (3, 105) if quick else (DRAFTS, TEXTS)
    loop = LoopSettings(weak_prompts=WEAK, own_prompts=OWN, benchmark_prompts=4, max_tokens=TOKENS)
    with Steps() as steps, tempfile.TemporaryDirectory(prefix="draftloop-rollback-") as name:
        folder = Path(name)
        pair, made = run_loop(loop, loop_config(loop, short_training(seed=0)), folder / "data", steps.at)
        good = folder / "data" / "adapters" / made.trained.version
        worse = [with_noise(pair, good, seed, folder / f"worse-{seed}") for seed in range(drafts)]
        scored = scored_drafts(pair, PoolSettings(loop, texts), good, worse, steps)
        live = live_rollback(folder, pair, good.name, worse[0])
    ends = [end for seed, one in enumerate(scored) if (end := prompts_until_rollback(one, seed)) is not None]
    losses = [100 * one.loss for one in scored]
    figures = [
        Figure("acceptance length that the noise takes, median", statistics.median(losses), "%"),
        Figure("acceptance length that the noise takes, least", min(losses), "%"),
        Figure(f"decisions: rolled back within {MOST} held-out prompts", len(ends), "drafts", at_least=drafts),
        Figure("decisions: held-out prompts until then, median", statistics.median(ends or [0]), "prompts"),
        Figure("decisions: held-out prompts until then, most", max(ends, default=0), "prompts"),
        Figure("live: rolled back by the server", int(live.went_back), "drafts", at_least=1),
        Figure("live: held-out prompts until then", live.heldout, "prompts", at_most=MOST),
        Figure("live: all prompts until then", live.asked, "prompts"),
    ]
    print_table(
        ["figure", "measured", "unit", "reached"],
        [[one.figure, f"{one.value:.1f}", one.unit, str(one.reached)] for one in figures],
    )
    if not quick:
        conditions = {
            "drafts": drafts,
            "outputs": 2 * texts,
            "tokens": TOKENS,
            "noise": NOISE,
            "rule": "rejection",
            "num_draft_tokens": K,
        }
        results.write("live_rollback", conditions, figures, losses=losses, prompts=ends)


def with_noise(pair: Pair, good: Path, seed: int, folder: Path) -> Path:
    """A directory of the good adapter with noise on all of its matrices."""
    draft = pair.twin().with_adapter(good).draft
    weights = lora.adapter_parameters(draft)
    keys = mx.random.split(mx.random.key(seed), len(weights))
    for name, key in zip(sorted(weights), keys, strict=True):
        size = NOISE * mx.sqrt(mx.mean(mx.square(weights[name])))
        weights[name] = weights[name] + size * mx.random.normal(weights[name].shape, key=key)
    lora.load_parameters(draft, weights)
    folder.mkdir()
    lora.save_adapter(draft, folder)
    return folder


def scored_drafts(pair: Pair, settings: PoolSettings, good: Path, worse: Sequence[Path], steps: Steps) -> list[Scored]:
    """Every worse draft beside the good one, on the same outputs of both domains."""
    drafts: dict[str, Path | None] = {path.name: path for path in (good, *worse)}
    domains = [rounds_of(pair, sampled(pair, domain, settings, 1, steps), drafts) for domain in reference.DOMAINS]
    columns = {name: np.concatenate([domain[name] for domain in domains]) for name in domains[0]}
    return [Scored(columns["tokens"], columns[path.name][:, :K], columns[good.name][:, :K]) for path in worse]


def prompts_until_rollback(scored: Scored, seed: int) -> int | None:
    """Held-out prompts that had come when a look put the good draft back; None where none did within MOST."""
    rng = np.random.default_rng(seed)
    outputs = [
        ScoredOutput(str(row), "0", int(scored.tokens[row]), tuple(scored.worse[row]), tuple(scored.good[row]))
        for row in rng.permutation(len(scored.tokens))
    ]
    end = gate_looks.life([outputs], rng, alarm=False, most=MOST, seed=seed)
    return None if end is None else end.all


def live_rollback(folder: Path, pair: Pair, good: str, worse: Path) -> Live:
    """Put the good draft into use and then the worse one, and send prompts until the good one is back."""
    with live_server(folder, IDLE_MINUTES, SETTINGS) as server:
        data, prompts = server.data, new_prompts()
        manifest = {"pair": pair.identity, "parent": good}
        version = data.registry.create(lambda path: copy_adapter(worse, path), manifest)
        server.put_into_use(good)
        server.put_into_use(version.name)
        before = len(read_overview(data).heldout_prompts)
        for asked in range(PIECE, len(prompts) + 1, PIECE):
            runs = len(data.audit.entries())
            server.ask(prompts[asked - PIECE : asked], max_tokens=TOKENS)
            server.until(
                lambda: data.registry.champion() == good or len(data.audit.entries()) > runs,  # noqa: B023 - of now
                "a run of `retrain`",
            )
            if data.registry.champion() == good:
                break
        heldout = len(read_overview(data).heldout_prompts) - before
        return Live(data.registry.champion() == good, heldout, asked)


def copy_adapter(adapter: Path, folder: Path) -> None:
    """Copy an adapter into a folder that is there."""
    shutil.copytree(adapter, folder, dirs_exist_ok=True)


def new_prompts() -> list[str]:
    """Prompts of both domains that the good draft has not met, in a random order."""
    learned = {reference.WEAK_DOMAIN: WEAK, reference.OWN_DOMAIN: OWN}
    prompts = [
        prompt.text
        for domain, count in learned.items()
        for name, first in (("benchmark", 0), ("collect", count))
        for prompt in read_prompts(reference.prompts_file(domain, name))[first:]
    ]
    random.Random(0).shuffle(prompts)
    return prompts


if __name__ == "__main__":
    main()
