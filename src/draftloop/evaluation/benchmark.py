"""The acceptance benchmark: how much more is accepted from a draft with an adapter than from the bare one.

Outputs are scored once, which gives every draft length; `live_decoding` decodes for real. Knows no terminal and no log.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..config import SAMPLING, Rule, one_of
from ..data.records import GroupOf, Record, own_group
from ..data.usable import describe_counts, why_not_measured
from ..decoding.teacher_forced import TargetGeneration
from ..errors import ConfigError, PromptError
from ..models.pair import Pair
from .estimator import Acceptance, expected_rounds, total
from .intervals import LEVEL, Interval, paired_ratio_difference_interval, ratio_interval
from .scoring import OutputScores, score

BASE = "none"  # how tables and JSON name the bare draft


@dataclass(frozen=True)
class Sample:
    """An output to score, the prompt group that it counts for, and the opening of its prompt, if known."""

    generation: TargetGeneration
    group: str
    opening: str = ""


@dataclass(frozen=True)
class AcceptanceRow:
    """One draft at one rule and draft length; the interval is of the acceptance length, None for one prompt group."""

    adapter: str
    rule: Rule
    num_draft_tokens: int
    acceptance_per_position: float
    acceptance_rate: float
    acceptance_length: float
    ci_low: float | None
    ci_high: float | None


@dataclass(frozen=True)
class Difference:
    """Adapter minus bare draft at one rule and draft length, paired by prompt group."""

    rule: Rule
    num_draft_tokens: int
    delta_acceptance_length: float
    ci_low: float | None
    ci_high: float | None
    delta_acceptance_per_position: float
    position_ci_low: float | None
    position_ci_high: float | None


@dataclass(frozen=True)
class AcceptanceReport:
    """The report of a benchmark; `conditions` holds what the numbers depend on."""

    results: list[AcceptanceRow]
    comparison: list[Difference]
    conditions: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return asdict(self)


def rules_that_fit(samples: Sequence[Sample], rule: str) -> list[Rule]:
    """The rules to report: the one asked for, or with `auto` every rule that some output was sampled for.

    Raises:
        ConfigError: no output fits: `greedy` needs temperature 0, the other rules one above it.
    """
    greedy = [sample.generation.sampler.temperature == 0 for sample in samples]
    fitting: list[Rule] = ["greedy"] if any(greedy) else []
    fitting += SAMPLING if not all(greedy) else []
    if rule == "auto":
        return fitting
    for known in fitting:
        if known == rule:
            return [known]
    sampled = "at temperature 0" if all(greedy) else "above temperature 0"
    raise ConfigError(f"rule {rule} does not fit outputs that were sampled {sampled}; expected {one_of(fitting)}")


def samples_of(rule: Rule, samples: Sequence[Sample]) -> list[Sample]:
    """The outputs that a rule fits."""
    return [sample for sample in samples if (sample.generation.sampler.temperature == 0) == (rule == "greedy")]


def logged_samples(records: Iterable[Record], pair: Pair, group_of: GroupOf = own_group) -> list[Sample]:
    """The records that this pair can be measured on, as samples; `group_of` gives the joined group of each.

    Raises:
        PromptError: none is; the message counts why.
    """
    given = list(records)
    kept = [record for record in given if why_not_measured(record, pair.identity, pair.width) is None]
    if not kept:
        raise PromptError(
            f"none of {len(given)} held-out generations can be used: {describe_counts(left_out(given, pair))}; "
            "collect with this target, or give --prompts-file"
        )
    return [Sample(TargetGeneration.of(record), group_of(record), record.opening) for record in kept]


def left_out(records: Iterable[Record], pair: Pair) -> Counter[str]:
    """How many records this pair cannot be measured on, by reason."""
    reasons = (why_not_measured(record, pair.identity, pair.width) for record in records)
    return Counter(reason for reason in reasons if reason is not None)


def compare(
    pair: Pair,
    samples: Sequence[Sample],
    rule: str,
    draft_lengths: Sequence[int],
    adapter: tuple[str, Path] | None,
    *,
    seed: int,
    on_text: Callable[[int, int], None] = lambda _done, _of: None,
) -> AcceptanceReport:
    """Estimate under every rule that fits, each on the outputs that it fits: every draft, and their paired differences.

    Args:
        pair: the models; whatever adapter it carries is put off and on as needed.
        samples: outputs of the target.
        rule: as `rules_that_fit`, which says what it raises.
        draft_lengths: each K >= 1.
        adapter: its name and directory; None estimates the bare draft alone.
        seed: of the bootstrap.
        on_text: called with how many outputs are scored, under each rule and draft, and of how many.
    """
    drafts: dict[str, Path | None] = {BASE: None} | (dict([adapter]) if adapter else {})
    rules = rules_that_fit(samples, rule)
    of = len(drafts) * sum(len(samples_of(one, samples)) for one in rules)
    done = count(1)
    on_text(0, of)
    rows: list[AcceptanceRow] = []
    differences: list[Difference] = []
    for one in rules:
        fitting = samples_of(one, samples)
        groups, generations = [sample.group for sample in fitting], [sample.generation for sample in fitting]
        scores = score(pair, generations, one, drafts, lambda: on_text(next(done), of))
        for k in draft_lengths:
            outputs = {name: [accepted(own, one, k) for own in column] for name, column in scores.items()}
            rows += [row_of(name, one, k, column, groups, seed) for name, column in outputs.items()]
            if adapter is not None:
                differences.append(difference_of(one, k, outputs[BASE], outputs[adapter[0]], groups, seed))
    conditions = conditions_of(pair, samples, seed) | {
        "rules": rules,
        "num_draft_tokens": list(draft_lengths),
        "adapter": adapter[0] if adapter else BASE,
    }
    return AcceptanceReport(rows, differences, conditions)


def conditions_of(pair: Pair, samples: Sequence[Sample], seed: int) -> dict[str, Any]:
    """The conditions of a measurement on these outputs, whatever is compared on them."""
    samplers = {tuple(asdict(replace(sample.generation.sampler, seed=0)).items()): None for sample in samples}
    groups = "\n".join(sorted(sample.group for sample in samples))  # whatever their order
    return {
        "samplers": [{name: value for name, value in items if name != "seed"} for items in samplers],
        "pair": asdict(pair.identity),
        "texts": len(samples),
        "prompt_groups": len({sample.group for sample in samples}),
        "prompts_sha256": hashlib.sha256(groups.encode()).hexdigest(),
        "tokens": sum(len(sample.generation.output) for sample in samples),
        "interval": f"{LEVEL:.0%} cluster bootstrap over prompt groups",
        "seed": seed,
        "device": str(mx.default_device()),
    }


def accepted(scores: OutputScores, rule: Rule, num_draft_tokens: int) -> Acceptance:
    """The expected counts of one scored output."""
    return expected_rounds(scores.log_p, scores.log_q, rule, num_draft_tokens, scores.position)


def row_of(name: str, rule: Rule, k: int, outputs: list[Acceptance], groups: list[str], seed: int) -> AcceptanceRow:
    """The row of one draft at one K, from the counts of its outputs."""
    summed = total(outputs)
    interval = ratio_interval([o.tokens for o in outputs], [o.rounds for o in outputs], groups, seed=seed)
    assert summed.acceptance_per_position is not None
    return AcceptanceRow(
        adapter=name,
        rule=rule,
        num_draft_tokens=k,
        acceptance_per_position=summed.acceptance_per_position,
        acceptance_rate=summed.acceptance_rate,
        acceptance_length=summed.acceptance_length,
        ci_low=interval.low,
        ci_high=interval.high,
    )


def difference_of(
    rule: Rule, k: int, base: list[Acceptance], adapted: list[Acceptance], groups: list[str], seed: int
) -> Difference:
    """`adapted` minus `base` at one K, paired by prompt group."""

    def interval(ratio: Callable[[Acceptance], tuple[float, float]]) -> Interval:
        (before, rounds_before), (after, rounds_after) = (
            zip(*map(ratio, outputs), strict=True) for outputs in (base, adapted)
        )
        return paired_ratio_difference_interval(before, rounds_before, after, rounds_after, groups, seed=seed)

    length = interval(lambda output: (output.tokens, output.rounds))
    position = interval(lambda output: (output.position_sum or 0.0, output.tokens))
    return Difference(
        rule=rule,
        num_draft_tokens=k,
        delta_acceptance_length=length.estimate,
        ci_low=length.low,
        ci_high=length.high,
        delta_acceptance_per_position=position.estimate,
        position_ci_low=position.low,
        position_ci_high=position.high,
    )
