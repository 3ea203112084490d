"""The acceptance rules: which proposals of a round are accepted, and which token follows, without a synchronisation.

Shapes: K proposals, V shared tokens. `p` (K + 1, V) is the target's distribution after the pending token and after each
proposal, `q` (K, V) the draft's that each proposal was drawn from; both after the sampler's transforms, as float32
probabilities that sum to 1 within a few 1e-7. Whatever is random comes in as an argument, so a round is a function.

A verdict compares a float32 uniform with a float32 threshold, p/q under `rejection`: both are off by relative roundings
of 2**-24, so a proposal is accepted with its probability to within 2e-7. The thresholds of `block` are exponentials of
sums of logarithms and are within about 1e-6. The rest is the draw of a token (`draws`).
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from ..config import SAMPLING, Rule, one_of
from ..errors import ConfigError
from .draws import draw_tokens
from .row_blocks import row_sums

NEXT_TO_NOTHING = 1e-30


def rule_for(rule: str, temperature: float) -> Rule:
    """The rule in use: `auto` is greedy at temperature 0 and rejection above.

    Raises:
        ConfigError: greedy above temperature 0, or a sampling rule at 0.
    """
    if rule == "auto":
        return "greedy" if temperature == 0 else "rejection"
    fitting: tuple[Rule, ...] = ("greedy",) if temperature == 0 else SAMPLING
    for known in fitting:
        if known == rule:
            return known
    if rule in ("greedy", *SAMPLING):
        expected = one_of((*fitting, "auto"))
        raise ConfigError(f"rule {rule} does not fit temperature {temperature:g}; expected {expected}")
    raise ConfigError(f"unknown rule {rule!r}; expected {one_of(('greedy', *SAMPLING, 'auto'))}")


@dataclass(frozen=True)
class Verification:
    """What the acceptance rule decided about a round; not evaluated.

    Attributes:
        accepted: how many proposals are kept, a scalar.
        following: the token emitted after them, a scalar.
        p: probabilities of the proposals and of `following` under the target, (K + 1,).
        q: likewise under the draft; the last is of the last proposal's row where all were kept, and means nothing.
    """

    accepted: mx.array
    following: mx.array
    p: mx.array
    q: mx.array


def verify_proposals(
    p: mx.array, q: mx.array, proposals: mx.array, verdicts: mx.array, draws: mx.array, rule: Rule
) -> Verification:
    """Accept a prefix of the proposals, above temperature 0.

    Args:
        p: (K + 1, V) float32.
        q: (K, V) float32.
        proposals: (K,) tokens, drawn from the rows of `q`.
        verdicts: (K,) uniforms in [0, 1), independent of the proposals; `match` uses none of them.
        draws: (K + 1, `exponentials_per_draw(V)`) exponentials, likewise; the other rules use the last row alone.
        rule: `rejection` is Algorithm 1 of Leviathan et al. (arXiv 2211.17192); `block` is Algorithm 2 of Sun et al.
            (arXiv 2403.10444); `match` keeps a proposal that equals the target's own sample.

    Raises:
        ValueError: another rule.
    """
    chosen, count = proposals[:, None], q.shape[0]
    p_chosen, q_chosen = (mx.take_along_axis(rows, chosen, axis=-1).squeeze(-1) for rows in (p[:-1], q))
    p_tau = None
    if rule == "match":
        own = draw_tokens(p, draws)  # (K + 1,)
        accepted = _leading_true(own[:-1] == proposals)
    elif rule == "block":
        thresholds, p_taus = block_thresholds(p, q, p_chosen / q_chosen)
        accepted = mx.where(verdicts < thresholds, mx.arange(1, count + 1), 0).max()
        p_tau = p_taus[accepted]
    elif rule == "rejection":
        accepted = _leading_true(verdicts < p_chosen / q_chosen)
    else:
        raise ValueError(f"rule {rule}: expected one of {', '.join(SAMPLING)}")
    after, before = p[accepted], q[mx.minimum(accepted, count - 1)]
    if rule == "match":
        following = own[accepted]
    else:
        following = draw_tokens(residual_weights(after, before * (accepted < count), p_tau), draws[-1])
    return Verification(
        accepted,
        following,
        mx.concatenate([p_chosen, after[following][None]]),
        mx.concatenate([q_chosen, before[following][None]]),
    )


def block_thresholds(p: mx.array, q: mx.array, ratios: mx.array) -> tuple[mx.array, mx.array]:
    """The thresholds of block verification: the last proposal whose uniform is below its own is the last one kept.

    p_i = min(p_{i−1}·p(x_i)/q(x_i), 1) from p_0 = 1 is the least of the products of the last j ratios, j = 0 .. i. Each
    of these K² products is summed by itself, as logarithms: as the difference of two running sums, which may be large
    and near each other, it would be off by several times as much at K = 64.

    Args:
        p: (K + 1, V) float32.
        q: (K, V) float32.
        ratios: p(x_i)/q(x_i) of the proposals, (K,).

    Returns:
        h_1 .. h_K, and p_0 .. p_K, of which p_τ is the factor on p in the residual after τ kept proposals.
    """
    is_past = mx.tri(ratios.size, dtype=mx.bool_)
    products = mx.cumsum(mx.where(is_past, mx.log(ratios), 0.0), axis=1, reverse=True)  # (i, j): of ratios j .. i
    least = mx.concatenate([mx.ones(1), mx.exp(mx.minimum(products.min(axis=1), 0.0))])  # p_0 .. p_K
    inner = least[1:-1]
    left = row_sums(mx.maximum(inner[:, None] * p[1:-1] - q[1:], 0.0))  # R_1 .. R_(K-1)
    whole = left + (1.0 - inner)
    last_but_one = mx.where(whole > 0, left / whole, 1.0)  # p_i is 1 and p equals q: as good as accepted
    return mx.concatenate([last_but_one, least[-1:]]), least


def residual_weights(after: mx.array, before: mx.array, p_tau: mx.array | None) -> mx.array:
    """max(p_τ·p − q, 0) (V,), unnormalised, of p after the last kept proposal and q where the next one was drawn.

    `p_tau` is None where it is 1. Where p and q agree to the last bit nothing would be left; a rejection is then a
    rounding error, and p itself is right. So a part of p stays that is lost in any sum but that of nothing.
    """
    left = after - before if p_tau is None else p_tau * after - before
    return mx.maximum(left, after * NEXT_TO_NOTHING)


def _leading_true(flags: mx.array) -> mx.array:
    """How many of `flags` (K,) are true before the first false one."""
    return mx.cumprod(flags.astype(mx.int32)).sum()
