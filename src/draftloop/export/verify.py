"""Export verification measures the acceptance of an exported draft, loaded back from its files. Knows no file format.

Bare draft, draft + adapter and exported draft are scored on the same outputs: differences are paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from ..evaluation.benchmark import (
    BASE,
    AcceptanceRow,
    Difference,
    Sample,
    accepted,
    conditions_of,
    difference_of,
    row_of,
    rules_that_fit,
    samples_of,
)
from ..evaluation.intervals import LEVEL
from ..evaluation.scoring import score, score_carried
from ..models.pair import Pair

EXPORTED = "exported"  # how tables and JSON name what was written, as loaded back from its files
WORTH_SAYING = 0.01  # of acceptance length


@dataclass(frozen=True)
class ExportDifference(Difference):
    """`of` minus `against`, paired by prompt group."""

    of: str
    against: str


@dataclass(frozen=True)
class Measured:
    """Acceptance of the bare draft, of draft + adapter and of the export, on the same outputs."""

    results: list[AcceptanceRow]
    comparison: list[ExportDifference]
    conditions: dict[str, Any]

    def lost(self) -> list[ExportDifference]:
        """Where the export is accepted less than draft + adapter: beyond chance, and by enough to say so."""
        against_adapter = self._against(self.conditions["adapter"])
        return [
            change
            for change in against_adapter
            if change.delta_acceptance_length < -WORTH_SAYING and change.ci_high is not None and change.ci_high < 0
        ]

    def below_bare_draft(self) -> list[ExportDifference]:
        """Where the export is accepted less than the draft without any adapter, by however little."""
        return [change for change in self._against(BASE) if change.delta_acceptance_length < 0]

    def _against(self, other: str) -> list[ExportDifference]:
        return [change for change in self.comparison if (change.of, change.against) == (EXPORTED, other)]


def below_in_words(change: ExportDifference) -> str:
    """One of `Measured.below_bare_draft` as a sentence."""
    doubt = change.ci_high is None or change.ci_high >= 0
    interval = "" if change.ci_low is None else f", {LEVEL:.0%} interval [{change.ci_low:+.3f}, {change.ci_high:+.3f}]"
    return (
        f"Below the bare draft: under rule {change.rule} at K = {change.num_draft_tokens} the acceptance length of "
        f"this export is {-change.delta_acceptance_length:.3f} less than that of the draft without any adapter"
        f"{interval}{' (which may be chance)' if doubt else ''}. Use the bare draft instead, or another version."
    )


def measure_export(
    pair: Pair,
    exported: Pair,
    adapter: tuple[str, Path],
    samples: Sequence[Sample],
    num_draft_tokens: int,
    *,
    seed: int,
) -> Measured:
    """Estimate acceptance under every rule that fits the outputs.

    Args:
        pair: the models; afterwards its draft carries the adapter.
        exported: the same target with the exported draft.
        adapter: name and directory of the version.
        samples: held-out outputs of the target.
        num_draft_tokens: K >= 1.
        seed: of the bootstrap.
    """
    rows: list[AcceptanceRow] = []
    comparison: list[ExportDifference] = []
    rules = rules_that_fit(samples, "auto")
    for rule in rules:
        fitting = samples_of(rule, samples)
        groups, generations = [sample.group for sample in fitting], [sample.generation for sample in fitting]
        scores = score(pair, generations, rule, {BASE: None, adapter[0]: adapter[1]})
        scores[EXPORTED] = score_carried(exported, generations, rule)
        outputs = {name: [accepted(one, rule, num_draft_tokens) for one in column] for name, column in scores.items()}
        rows += [row_of(name, rule, num_draft_tokens, column, groups, seed) for name, column in outputs.items()]
        for against, of in combinations(outputs, 2):
            change = difference_of(rule, num_draft_tokens, outputs[against], outputs[of], groups, seed)
            comparison.append(ExportDifference(**asdict(change), of=of, against=against))
    conditions = conditions_of(pair, samples, seed) | {
        "rules": rules,
        "num_draft_tokens": num_draft_tokens,
        "adapter": adapter[0],
    }
    return Measured(rows, comparison, conditions)
