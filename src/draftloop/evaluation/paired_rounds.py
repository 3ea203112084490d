"""The rounds of two drafts on the same outputs, as columns, for gate and looks. Knows no models, records or mlx.

Over several outputs every length is a ratio of sums; every test flips whole prompt groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .estimator import FloatArray
from .intervals import group_sums, paired_ratio_difference_interval


@dataclass(frozen=True, slots=True)
class ScoredOutput:
    """One held-out output under both drafts.

    Attributes:
        group: its prompt group, which every test flips as one.
        source: where its prompt came from.
        tokens: N, the emitted tokens; end-of-text is one of them.
        champion_rounds: expected rounds at K = 1, 2, …, as far as was scored; as many for every output.
        candidate_rounds: likewise.
        position_sums: the acceptance per position summed over the output, under champion and candidate, for reports;
            None where it was not measured.
    """

    group: str
    source: str
    tokens: int
    champion_rounds: tuple[float, ...]
    candidate_rounds: tuple[float, ...]
    position_sums: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Columns:
    """The outputs as arrays: groups and sources (n,), tokens (n,) float64, rounds (n, L) float64 by K − 1."""

    groups: npt.NDArray[np.object_]
    sources: npt.NDArray[np.object_]
    tokens: FloatArray
    champion: FloatArray
    candidate: FloatArray


@dataclass(frozen=True, slots=True)
class LengthComparison:
    """Acceptance lengths of both at one K, and candidate minus champion with the ends of its interval."""

    prompts: int
    champion: float
    candidate: float
    difference: float
    low: float | None
    high: float | None


def columns_of(outputs: Sequence[ScoredOutput], least: int) -> Columns:
    """The outputs as arrays, with rounds for K = 1 to `least` or further."""
    if len({len(rounds) for output in outputs for rounds in (output.champion_rounds, output.candidate_rounds)}) != 1:
        raise ValueError("rounds go up to different K: expected the same for every output and both drafts")
    columns = Columns(
        groups=np.array([output.group for output in outputs], dtype=object),
        sources=np.array([output.source for output in outputs], dtype=object),
        tokens=np.array([output.tokens for output in outputs], dtype=np.float64),
        champion=np.array([output.champion_rounds for output in outputs], dtype=np.float64),
        candidate=np.array([output.candidate_rounds for output in outputs], dtype=np.float64),
    )
    if columns.champion.shape[1] < least:
        raise ValueError(f"rounds go up to K = {columns.champion.shape[1]}: expected {least}")
    for name in ("tokens", "champion", "candidate"):
        values = getattr(columns, name)
        if not (np.isfinite(values) & (values > 0)).all():
            raise ValueError(f"{name} has a number that is not positive and finite: expected tokens and rounds above 0")
    return columns


def compare_lengths(columns: Columns, k: int, level: float, seed: int) -> LengthComparison:
    """Both acceptance lengths at K = k, and their paired difference."""
    champion, candidate = columns.champion[:, k - 1], columns.candidate[:, k - 1]
    interval = paired_ratio_difference_interval(
        columns.tokens, champion, columns.tokens, candidate, columns.groups.tolist(), seed=seed, level=level
    )
    lengths = [float(columns.tokens.sum() / rounds.sum()) for rounds in (champion, candidate)]
    return LengthComparison(
        interval.groups, lengths[0], lengths[1], lengths[1] - lengths[0], interval.low, interval.high
    )


def spread(columns: Columns, k: int) -> tuple[float, float]:
    """The share of prompt groups that got worse, and the tenth percentile of the change in acceptance length."""
    tokens, champion, candidate = group_sums(
        columns.groups.tolist(),
        tokens=columns.tokens,
        champion=columns.champion[:, k - 1],
        candidate=columns.candidate[:, k - 1],
    )
    changes = tokens / candidate - tokens / champion
    return float((changes < 0.0).mean()), float(np.quantile(changes, 0.1))


def take(columns: Columns, rows: list[int]) -> Columns:
    """Some of the outputs."""
    return Columns(*(getattr(columns, name)[rows] for name in Columns.__dataclass_fields__))
