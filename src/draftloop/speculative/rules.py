"""Which proposals of a round are kept and what is emitted after them, as array operations without a synchronisation.

Shapes: K proposals, V shared ids. `log_p` (K + 1, V) is the target's distribution after the pending token and after
each proposal, `log_q` (K, V) the draft's that each proposal was drawn from; both after the sampler's transforms.
"""

from __future__ import annotations

from typing import Literal

import mlx.core as mx

from ..errors import ConfigError

Rule = Literal["greedy", "rejection", "match"]


def rule_for(rule: str, temperature: float) -> Rule:
    """The rule in use: `auto` is greedy at temperature 0 and rejection above.

    Raises:
        ConfigError: greedy above temperature 0, or a sampling rule at 0.
    """
    if rule == "auto":
        return "greedy" if temperature == 0 else "rejection"
    if (rule == "greedy") != (temperature == 0):
        wanted = "greedy" if temperature == 0 else "rejection or match"
        raise ConfigError(f"rule {rule} does not fit temperature {temperature:g}; expected {wanted}, or auto")
    if rule not in ("greedy", "rejection", "match"):
        raise ConfigError(f"unknown rule {rule!r}; expected greedy, rejection, match or auto")
    return rule  # type: ignore[return-value]


def draw(log_probs: mx.array, key: mx.array, rule: Rule) -> mx.array:
    """One id from each row of `log_probs` (..., V): its argmax under `greedy`, else a sample."""
    if rule == "greedy":
        return mx.argmax(log_probs, axis=-1)
    return mx.random.categorical(log_probs, key=key)


def verify(
    log_p: mx.array, log_q: mx.array, proposals: mx.array, key: mx.array, rule: Rule
) -> tuple[mx.array, mx.array]:
    """Accept a prefix of the proposals.

    Args:
        log_p: (K + 1, V) float32.
        log_q: (K, V) float32.
        proposals: (K,) ids, drawn from the rows of `log_q`.
        key: randomness of this verification.
        rule: `rejection` is Algorithm 1 of Leviathan et al. (arXiv 2211.17192); `match` keeps a proposal that equals
            the target's own sample; `greedy` keeps one that equals the target's argmax.

    Returns:
        How many proposals are accepted, and the one id emitted after them; both scalars, not evaluated.
    """
    if rule == "rejection":
        return _reject(log_p, log_q, proposals, key)
    own = draw(log_p, key, rule)  # (K + 1,)
    accepted = _leading_true(own[:-1] == proposals)
    return accepted, own[accepted]


def _reject(log_p: mx.array, log_q: mx.array, proposals: mx.array, key: mx.array) -> tuple[mx.array, mx.array]:
    uniform_key, residual_key = mx.random.split(key)
    chosen = proposals[:, None]
    ratio = mx.take_along_axis(log_p[:-1], chosen, axis=-1) - mx.take_along_axis(log_q, chosen, axis=-1)
    uniform = mx.random.uniform(shape=proposals.shape, key=uniform_key)
    accepted = _leading_true(mx.log(uniform) < ratio.squeeze(-1))
    return accepted, mx.random.categorical(_residual(log_p, log_q, accepted), key=residual_key)


def _residual(log_p: mx.array, log_q: mx.array, accepted: mx.array) -> mx.array:
    """log of max(p - q, 0) at the first refused position, or of p after the last one; (V,), unnormalised."""
    p = mx.exp(log_p[accepted])
    count = log_q.shape[0]
    q = mx.exp(log_q[mx.minimum(accepted, count - 1)]) * (accepted < count)
    left = mx.maximum(p - q, 0.0)
    # Where p and q agree to the last bit nothing is left; a refusal is then a rounding error, and p itself is right.
    return mx.log(mx.where(left.sum() > 0, left, p))


def _leading_true(flags: mx.array) -> mx.array:
    """How many of `flags` (K,) are true before the first false one."""
    return mx.cumprod(flags.astype(mx.int32)).sum()
