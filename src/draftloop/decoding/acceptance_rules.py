"""The acceptance rules: which proposals of a round are accepted, and which token follows, without a synchronisation.

Shapes: K proposals, V shared tokens. `p` (K + 1, V) is the target's distribution after the pending token and after each
proposal, `q` (K, V) the draft's that each proposal was drawn from; both after the sampler's transforms, as float32
probabilities. Whatever is random comes in as uniforms, so a round is a function of its arguments.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from ..config import SAMPLING, Rule, one_of
from ..errors import ConfigError

NEXT_TO_NOTHING = 1e-30
UNIFORM_BITS = 23  # uniforms are whole multiples of 2**-23 below 1, so that a product with a sum stays below the sum


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


def draw_tokens(weights: mx.array, uniforms: mx.array) -> mx.array:
    """One token from each row by inversion: the first at which the running sum exceeds its uniform times the whole sum.

    One pass of additions, where Gumbel noise would take two logarithms per token. A token without weight comes out only
    where a device's running sum is not monotone in its last bit.

    Args:
        weights: (..., V) float32, not negative, not all zero; they need not sum to 1.
        uniforms: (...,) float32 in [0, 1), multiples of 2**-23.

    Returns:
        (...,) tokens, not evaluated.
    """
    sums = mx.cumsum(weights, axis=-1)
    return mx.argmax(sums > sums[..., -1:] * uniforms[..., None], axis=-1)


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


def verify_proposals(p: mx.array, q: mx.array, proposals: mx.array, uniforms: mx.array, rule: Rule) -> Verification:
    """Accept a prefix of the proposals, above temperature 0.

    Args:
        p: (K + 1, V) float32.
        q: (K, V) float32.
        proposals: (K,) tokens, drawn from the rows of `q`.
        uniforms: (K + 1,), independent of the proposals.
        rule: `rejection` is Algorithm 1 of Leviathan et al. (arXiv 2211.17192); `block` is Algorithm 2 of Sun et al.
            (arXiv 2403.10444); `match` keeps a proposal that equals the target's own sample.

    Raises:
        ValueError: another rule.
    """
    chosen, count = proposals[:, None], q.shape[0]
    p_chosen, q_chosen = (mx.take_along_axis(rows, chosen, axis=-1).squeeze(-1) for rows in (p[:-1], q))
    p_tau = None
    if rule == "match":
        own = draw_tokens(p, uniforms)  # (K + 1,)
        accepted = _leading_true(own[:-1] == proposals)
    elif rule == "block":
        accepted, p_tau = _accept_block(p, q, p_chosen, q_chosen, uniforms[:-1])
    elif rule == "rejection":
        accepted = _leading_true(uniforms[:-1] * q_chosen < p_chosen)
    else:
        raise ValueError(f"rule {rule}: expected one of {', '.join(SAMPLING)}")
    after, before = p[accepted], q[mx.minimum(accepted, count - 1)]
    if rule == "match":
        following = own[accepted]
    else:
        following = draw_tokens(_residual(after, before * (accepted < count), p_tau), uniforms[-1])
    return Verification(
        accepted,
        following,
        mx.concatenate([p_chosen, after[following][None]]),
        mx.concatenate([q_chosen, before[following][None]]),
    )


def _accept_block(
    p: mx.array, q: mx.array, p_chosen: mx.array, q_chosen: mx.array, uniforms: mx.array
) -> tuple[mx.array, mx.array]:
    """τ of block verification, and p_τ, the factor on p in its residual.

    p_i = min(p_{i−1}·p(x_i)/q(x_i), 1) from p_0 = 1 is the least of the products of the last j ratios, j = 0 .. i, so
    its logarithm is a running sum minus the greatest running sum so far.
    """
    ratios = mx.concatenate([mx.zeros(1), mx.cumsum(mx.log(p_chosen) - mx.log(q_chosen))])
    least = mx.exp(ratios - mx.cummax(ratios))  # p_0 .. p_K
    inner = least[1:-1]
    left = mx.maximum(inner[:, None] * p[1:-1] - q[1:], 0.0).sum(axis=-1)  # R_1 .. R_(K-1)
    whole = left + 1.0 - inner
    last_but_one = mx.where(whole > 0, left / whole, 1.0)  # p_i is 1 and p equals q: as good as accepted
    steps = mx.concatenate([last_but_one, least[-1:]])  # h_1 .. h_K
    reached = mx.where(uniforms < steps, mx.arange(1, uniforms.size + 1), 0)
    accepted = reached.max()
    return accepted, least[accepted]


def _residual(after: mx.array, before: mx.array, p_tau: mx.array | None) -> mx.array:
    """max(p_τ·p − q, 0) (V,), unnormalised, of p after the last kept proposal and q where the next one was drawn.

    `p_tau` is None where it is 1. Where p and q agree to the last bit nothing would be left; a rejection is then a
    rounding error, and p itself is right. So a part of p stays that is lost in any sum but that of nothing.
    """
    left = after - before if p_tau is None else p_tau * after - before
    return mx.maximum(left, after * NEXT_TO_NOTHING)


def _leading_true(flags: mx.array) -> mx.array:
    """How many of `flags` (K,) are true before the first false one."""
    return mx.cumprod(flags.astype(mx.int32)).sum()
