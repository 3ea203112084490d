"""What a draft gives with one set of tokens to propose or another: acceptance, seconds on this machine, and forecast.

a trained draft, a few vocabularies -> each decoded as it would be in use -> t_draft ┐
generations that it was not trained on, scored under each -> acceptance length by K -┴-> DraftTrial
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ..config import SAMPLING, Config, Rule
from ..data.records import Record
from ..decoding.teacher_forced import TargetGeneration
from ..models.draft_vocabulary import DraftVocabulary
from ..models.pair import Pair
from .estimator import Acceptance, expected_rounds, forecast, total
from .gate_target import LoadedTarget, Timing
from .latency import QUICK, measure_latency
from .scoring import OutputScores, score

QUICKLY: Timing = partial(measure_latency, care=QUICK)


@dataclass(frozen=True, slots=True)
class DraftTrial:
    """What was measured.

    Attributes:
        vocabulary: what the draft could propose; None is everything.
        t_draft: seconds of a draft step.
        acceptance: per position.
        num_draft_tokens: the K with the highest forecast.
        forecast: speed-up at that K over decoding without a draft.
    """

    vocabulary: DraftVocabulary | None
    t_draft: float
    acceptance: float
    num_draft_tokens: int
    forecast: float


def try_drafts(
    pair: Pair,
    vocabularies: Iterable[DraftVocabulary | None],
    records: Sequence[Record],
    config: Config,
    target: LoadedTarget,
) -> list[DraftTrial]:
    """Measure the draft that the pair carries, with each vocabulary.

    Args:
        pair: both models loaded.
        vocabularies: None is everything.
        records: at least one.
        config: resolved.
        target: that times.
    """
    most = config.speculative.max_draft_tokens
    whole = replace(pair.twin(), vocabulary=None)
    whole.merge()  # once: the variants share all but the rows of their heads
    variants = {f"{i}": replace(whole.twin(), vocabulary=one) for i, one in enumerate(vocabularies)}
    for variant in variants.values():
        variant.merge()
    profiles = {name: target.latency(variant, most, lambda _done, _of: None) for name, variant in variants.items()}
    by_rule = {
        rule: [record for record in records if (record.sampler.temperature == 0) is (rule == "greedy")]
        for rule in ("greedy", _rule(config))
    }
    drafts: dict[str, Any] = {name: partial(_draft_of, variant) for name, variant in variants.items()}
    scores: dict[str, list[tuple[Rule, OutputScores]]] = {name: [] for name in variants}
    for rule, some in by_rule.items():
        found = score(pair, [TargetGeneration.of(record) for record in some], rule, drafts)
        for name, own in found.items():
            scores[name] += [(rule, one) for one in own]
    # One target for all: its passes do not depend on the draft, and noise in them would decide.
    t_target = next(iter(profiles.values())).t_target
    trials = []
    for name, variant in variants.items():
        t_draft = profiles[name].t_draft
        speed_up = partial(_speed_up, scores[name], t_draft, t_target)
        best = max(range(1, most + 1), key=speed_up)
        tokens = sum(len(one.log_p) for _, one in scores[name])
        accepted = sum(float(one.position.sum()) for _, one in scores[name])
        trials.append(DraftTrial(variant.vocabulary, t_draft, accepted / tokens, best, speed_up(best)))
    return trials


def _draft_of(pair: Pair) -> Any:
    return pair.draft


def _speed_up(scores: Sequence[tuple[Rule, OutputScores]], t_draft: float, t_target: Sequence[float], k: int) -> float:
    outputs: list[Acceptance] = [expected_rounds(one.log_p, one.log_q, rule, k) for rule, one in scores]
    return forecast(total(outputs).acceptance_length, t_draft, t_target[0], t_target[k], k)


def _rule(config: Config) -> Rule:
    wanted = config.speculative.rule
    return wanted if wanted in SAMPLING else "rejection"
