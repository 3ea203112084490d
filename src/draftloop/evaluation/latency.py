"""The latency of a draft step, a plain step and a round of every draft length on this machine. Knows no acceptance.

The decoder's own steps are timed, sampling and reads included, on a filled cache, at temperature 1 without filters or
at temperature 0: whole rounds of K proposals, a chain of draft steps, a chain of plain steps. So a round takes
K·t_draft + T(K + 1), and a token without a draft T(1). A few K are timed, the others lie on the line between their
neighbours.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version

import mlx.core as mx
import numpy as np

from ..caches import new_cache
from ..data.records import Sampler
from ..decoding.draft_length import LatencyProfile
from ..decoding.round_sampler import round_sampler_for
from ..models import adapter as lora
from ..models.pair import Pair
from ..runtime import blas
from .latency_profiles import pair_key

TIMED = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # draft lengths
CHAIN = 8  # steps
PREFIX = 32  # tokens already in the cache, if the pair holds as many
STEPS_MADE_ANEW = 2  # counts up where draftloop's own steps change so much that what is kept is wrong


@dataclass(frozen=True)
class Care:
    """How often everything is timed: in blocks, so that whatever else runs here slows all of it alike."""

    blocks: int
    warm_up: int
    repeats: int


CAREFUL = Care(blocks=12, warm_up=1, repeats=2)
QUICK = Care(blocks=3, warm_up=1, repeats=1)  # before a first output, for a person who waits


def measure_latency(
    pair: Pair,
    max_draft_tokens: int,
    care: Care = CAREFUL,
    on_timed: Callable[[int, int], None] = lambda _done, _of: None,
    *,
    greedy: bool = False,
) -> LatencyProfile:
    """The latency profile of a pair on this machine: medians in seconds.

    Args:
        pair: the models, the draft with whatever adapter it carries, which is merged as it is for decoding.
        max_draft_tokens: Kmax >= 1; T is measured for 1 .. Kmax + 1 positions.
        care: how often.
        on_timed: called with how many of all timings are made, and of how many.
        greedy: decode at temperature 0, where nothing is drawn.
    """
    lengths = sorted({k for k in TIMED if k < max_draft_tokens} | {max_draft_tokens})
    with pair.merged():
        timed = _Timed(pair, max_draft_tokens, greedy)
        seconds = _medians([timed.plain, timed.draft, *(timed.round_of(k) for k in lengths)], care, on_timed)
    plain, draft = seconds[0] / CHAIN, seconds[1] / CHAIN
    rounds = np.interp(range(1, max_draft_tokens + 1), lengths, seconds[2:])
    verified = (max(float(whole) - k * draft, plain) for k, whole in enumerate(rounds, 1))
    return LatencyProfile(t_draft=draft, t_target=(plain, *verified))


def machine_fingerprint(pair: Pair, *, greedy: bool) -> str:
    """Of what latencies depend on: the pair (`latency_profiles.pair_key`), adapter beside its weights, machine, MLX.

    A self-draft's adapter is beside its weights whatever type these have (`Pair.merged`).
    """
    device = mx.device_info()  # on CUDA with how much memory is free
    facts = (
        STEPS_MADE_ANEW,
        greedy,
        asdict(pair.identity),
        lora.stays_beside(pair.draft) or (pair.self_layers is not None and pair.adapter is not None),
        *([] if pair.vocabulary is None or pair.vocabulary.is_whole else [len(pair.vocabulary.tokens)]),
        *(device.get(fact) for fact in ("device_name", "architecture", "memory_size", "total_memory")),
        os.cpu_count(),
        blas.loaded(),
        *(version(name) for name in ("mlx", "mlx-lm")),
    )
    pair_part = pair_key(pair.identity.target, pair.identity.draft, greedy=greedy)
    return f"{pair_part}{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}"


class _Timed:
    """The steps to time; each leaves the caches as they were."""

    def __init__(self, pair: Pair, most: int, greedy: bool) -> None:
        room = (pair.context or PREFIX + most + CHAIN + 2) - max(most, CHAIN) - 2
        self._pair, prefix = pair, max(1, min(PREFIX, room))
        slack = max(most + 1, CHAIN)
        self._target, self._draft = new_cache(pair.target, slack), new_cache(pair.draft, slack)
        for cache in (self._target, self._draft):
            cache.prefill(mx.zeros((prefix,), mx.uint32), prefix)
        self._sampler = round_sampler_for(Sampler(0.0 if greedy else 1.0, 1.0, 0.0, 0, 0), pair.width)

    def plain(self) -> None:
        """CHAIN plain steps, each enqueued before the one before it is read."""
        token = mx.array([0], mx.uint32)
        for _ in range(CHAIN):
            before, token = token, self._sampler.following(self._target.read(token))
            mx.async_eval(token)
            before.item()
        token.item()
        self._target.rewind(CHAIN)

    def draft(self) -> None:
        """CHAIN proposals."""
        mx.eval(self._propose(CHAIN))
        self._draft.rewind(CHAIN)

    def round_of(self, k: int) -> Callable[[], None]:
        """K proposals and their verification, of which half is taken back."""

        def make() -> None:
            proposals = self._propose(k)
            tokens = mx.concatenate([mx.array([0], mx.uint32), *proposals])
            logits = self._target.read(tokens)
            mx.async_eval(logits)
            self._sampler.verify(logits)
            half = (k + 1) // 2
            self._target.rewind(half)  # a recurrent model reads again what stays
            self._target.evaluate()
            self._target.rewind(k + 1 - half)
            self._draft.rewind(k)

        return make

    def _propose(self, count: int) -> list[mx.array]:
        self._sampler.begin(count)
        proposals = [mx.array([0], mx.uint32)]
        for _ in range(count):
            logits = self._draft.read(proposals[-1])
            mx.async_eval(logits)
            proposals.append(self._sampler.propose(logits))
            mx.async_eval(proposals[-1])
        return proposals[1:]


def _medians(steps: list[Callable[[], None]], care: Care, on_timed: Callable[[int, int], None]) -> list[float]:
    """Seconds of each, in blocks that time everything once more."""
    seconds: list[list[float]] = [[] for _ in steps]
    of, done = care.blocks * len(steps) * (care.warm_up + care.repeats), 0
    on_timed(0, of)
    for _ in range(care.blocks):
        for step, times in zip(steps, seconds, strict=True):
            for i in range(care.warm_up + care.repeats):
                began = time.perf_counter()
                step()
                if i >= care.warm_up:
                    times.append(time.perf_counter() - began)
                done += 1
                on_timed(done, of)
    return [statistics.median(times) for times in seconds]
