"""Simulate speculative rounds offline on target-only generations: what a live loop would have seen, drawn afterwards.

Given what the target emitted, y, the rounds of a live loop are independent of each other, and their law is known: one
from i keeps at least a proposals with probability S_i(a) (`evaluation.estimator.survival`), kept proposals are y
itself, and the one that was rejected at t has, under

    rejection   norm(max(q − p, 0)): q(x)·(1 − min(1, p(x)/q(x)))
    block       norm(max(q − p_τ·p, 0)), p_τ the least product of ratios p/q that ends with the last kept proposal:
                given x at t, nothing from t on is kept with probability 1 − min(p_τ·p(x)/q(x), 1)
    match       q without y
    greedy      argmax q

and is independent of y then. At a bonus position the draft's proposal is a draw from q. So one uniform per round and
one draw per position make records that have the law of live ones, from one pass of each model over whole outputs.

What flows, for a block of outputs with N tokens in all: p and q (N, V), two scalars per position to the host, where the
rounds are drawn, then the draws at rejected and bonus positions (M <= N of them) and four scalars of each back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..config import Rule
from ..data.teacher_top_k import concatenate_top_k
from ..evaluation.estimator import FloatArray, survival
from ..models.pair import Pair
from .acceptance_rules import NEXT_TO_NOTHING
from .decoder import Settings
from .draws import draw_tokens, exponentials_per_draw
from .generation import Generation, RejectedToken
from .random_stream import RandomStream
from .sampling_filters import sampling_probs
from .teacher_forced import TargetGeneration, blocks, distributions
from .top_k import to_numpy, top_k_tokens

BLOCK_BYTES = 128 << 20  # of distributions of each model held at once, where one output alone has no more
_SLICE_BYTES = 32 << 20  # of copies of them that are worked on
_ROUNDS, _DRAWS = 2, 3  # streams of random numbers, beside the decoder's own


@dataclass(frozen=True)
class _Turns:
    """The rounds along one output, and the positions where the draft's proposal is not what was emitted.

    `p_taus` has p_τ of each position, 1 but under `block`; None where it is a bonus position.
    """

    rounds: list[tuple[int, int]]
    positions: list[int]
    p_taus: list[float | None]


def simulate_rounds(
    pair: Pair,
    generations: Sequence[TargetGeneration],
    settings: Settings,
    known_p: Sequence[mx.array | None] | None = None,
    on_part: Callable[[], None] = lambda: None,
) -> Iterator[tuple[int, Generation]]:
    """Simulate the speculative rounds of each output.

    Args:
        pair: the models, the draft with the adapter in use.
        generations: of the target, under the sampler of `settings` but for their own seeds, which are used here too.
        settings: rule, K and what is kept of the target's distributions.
        known_p: (N, width) of each output, what it was drawn from, where that was kept: the target does not read it
            then.
        on_part: called after each part of a long prompt; what it raises ends the reading.

    Yields:
        The index and the generation of each output, block by block.
    """
    for block in blocks(generations, pair.width, BLOCK_BYTES):
        q = dict(distributions(pair.draft, generations, block, pair.width, sampling_probs, on_part))
        p = {i: rows for i in block if (rows := _known(generations[i], pair.width, known_p and known_p[i])) is not None}
        unread = [i for i in block if i not in p]
        p |= distributions(pair.target, generations, unread, pair.width, sampling_probs, on_part)
        members = sorted(block)
        whole_p, whole_q = (mx.concatenate([table.pop(i) for i in members]) for table in (p, q))
        yield from _block(pair, [(i, generations[i]) for i in members], whole_p, whole_q, settings)


def _known(generation: TargetGeneration, width: int, kept: mx.array | None) -> mx.array | None:
    """What an output was drawn from, (N, width), where no pass is needed: at temperature 0 it says so itself."""
    if generation.sampler.temperature > 0:
        return kept
    return (mx.arange(width) == mx.array(generation.output)[:, None]).astype(mx.float32)


def _block(
    pair: Pair, members: list[tuple[int, TargetGeneration]], p: mx.array, q: mx.array, settings: Settings
) -> Iterator[tuple[int, Generation]]:
    """The generations of a block, from p and q (N, V) of all of its outputs, one after the other."""
    # 1. To the host: log p and log q of what was emitted, (N,) each, and the target's top-k tokens.
    emitted = mx.array([token for _, generation in members for token in generation.output])
    log_p, log_q = (_log(mx.take_along_axis(table, emitted[:, None], axis=-1).squeeze(-1)) for table in (p, q))
    top_k, topk_parts = settings.top_k_kept(pair.width), []
    for part in _slices(len(p), p.shape[-1]) if top_k else ():
        rows = top_k_tokens(p[part], top_k)
        mx.eval(rows)
        topk_parts.append(to_numpy(rows))
    topk = concatenate_top_k(topk_parts) if top_k else None

    # 2. Draw the rounds along each output.
    ends = np.cumsum([len(generation.output) for _, generation in members]).tolist()
    starts = [0, *ends[:-1]]
    along = [
        _draw_rounds(log_p[start:end], log_q[start:end], settings, RandomStream(generation.sampler.seed, _ROUNDS))
        for (_, generation), start, end in zip(members, starts, ends, strict=True)
    ]

    # 3. Draw what the draft proposed at the M rejected and bonus positions, with log p and log q of it.
    where = [start + at for start, turns in zip(starts, along, strict=True) for at in turns.positions]  # rows of p, q
    drawn: dict[int, tuple[int, float, float]] = {}
    if where:  # else every output ended with the last proposal that it kept
        p_taus = mx.array([p_tau or 0.0 for turns in along for p_tau in turns.p_taus])  # at a bonus position 0
        each = zip(members, along, strict=True)
        per_draw = exponentials_per_draw(p.shape[-1])
        exponentials = np.concatenate(  # (M, per_draw)
            [RandomStream(g.sampler.seed, _DRAWS).exponentials(len(t.positions), per_draw) for (_, g), t in each]
        )
        for part in _slices(len(where), p.shape[-1]):
            at = mx.array(where[part])
            before, after = q[at], p[at]  # (m, V)
            weights = _proposing(before, after, emitted[at], p_taus[part, None], settings.rule)
            tokens = draw_tokens(weights, mx.array(exponentials[part]))
            both = [mx.take_along_axis(table, tokens[:, None], axis=-1).squeeze(-1) for table in (after, before)]
            mx.eval(tokens, both)
            columns = [_log(column).tolist() for column in both]
            drawn |= dict(zip(where[part], zip(tokens.tolist(), *columns, strict=True), strict=True))

    # 4. Put each generation together: proposals are what was emitted, but at these positions.
    for (i, generation), start, end, turns in zip(members, starts, ends, along, strict=True):
        proposed = list(generation.output)
        for position in turns.positions:
            proposed[position] = drawn[start + position][0]
        rejected = [at for at, p_tau in zip(turns.positions, turns.p_taus, strict=True) if p_tau is not None]
        yield (
            i,
            Generation(
                output=generation.output,
                draft_output=tuple(proposed),
                log_p=tuple(log_p[start:end].tolist()),
                log_q=tuple(log_q[start:end].tolist()),
                rounds=tuple(turns.rounds),
                rejections=tuple(RejectedToken(at, *drawn[start + at]) for at in rejected),
                finish="stop" if generation.output[-1] in pair.stop_tokens else "length",
                rows=None if topk is None else topk[start:end],
                simulated=True,
            ),
        )


def _slices(count: int, width: int) -> list[slice]:
    """So many rows in parts that are small enough to be copied a few times."""
    step = max(1, _SLICE_BYTES // (4 * width))
    return [slice(start, start + step) for start in range(0, count, step)]


def _draw_rounds(log_p: FloatArray, log_q: FloatArray, settings: Settings, random: RandomStream) -> _Turns:
    """Draw the rounds along one output of N tokens; a round takes one uniform."""
    length, k = len(log_p), settings.num_draft_tokens
    reached = survival(log_p, log_q, settings.rule, k)[:, 1:]  # (N, K), not increasing
    uniforms = random.uniforms(length)
    turns = _Turns([], [], [])
    at = 0
    while at < length:
        drafted = min(k, length - at)
        accepted = min(int((uniforms[len(turns.rounds)] < reached[at]).sum()), drafted)
        turns.rounds.append((drafted, accepted))
        here = at + accepted
        if here < length:
            p_tau: float | None = 1.0
            if accepted == drafted:
                p_tau = None
            elif settings.rule == "block":
                products = np.cumsum([0.0, *(log_p[at:here] - log_q[at:here])])
                p_tau = float(np.exp(products[-1] - products.max()))
            turns.positions.append(here)
            turns.p_taus.append(p_tau)
        at = here + 1
    return turns


def _proposing(q: mx.array, p: mx.array, emitted: mx.array, p_taus: mx.array, rule: Rule) -> mx.array:
    """The weights that proposals are drawn from, (M, V), not normalised; `p_taus` (M, 1) is 0 at bonus positions."""
    match rule:
        case "match":
            return mx.where(p_taus > 0, mx.put_along_axis(q, emitted[:, None], mx.array(0.0), axis=-1), q)
        case "greedy":
            return q
        case "rejection" | "block":
            return mx.maximum(q - p_taus * p, q * NEXT_TO_NOTHING)


def _log(probabilities: mx.array) -> FloatArray:
    """(N,) float64, -inf where there is no mass."""
    with np.errstate(divide="ignore"):
        return np.log(np.minimum(np.array(probabilities, np.float64), 1.0))
