"""The draft's acceptance on a few generations, position by position, without the target: the edge that feeds `lessons`.

One example with n labels -> the draft's logits at its n supervised positions -> log q(y) under the record's own sampler
-> w (n,) by log p(y) of the record and under the record's own rule. Logits come in pieces: of a large vocabulary all of
them at once are much.
"""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ..data.records import Split
from ..decoding.sampling_filters import sampling_log_probs
from ..evaluation.estimator import log_probs, position_weights
from ..models.pair import Pair
from .dataset.examples import Example
from .dataset.mixture import TrainingMixture
from .forward import Forward, make_forward, positions_at_a_time
from .token_kinds import TokenKinds
from .token_report import Counts, Studied, TokenReport, by_kind, count, rejected, study, tally

MOST_GENERATIONS = 50


class TokenReporter:
    """The generations that a training is measured on by kind of token.

    Args:
        pair: its draft is measured as it is at each call.
        material: of the training; validation is measured on, or the failures where there is none.
        most: how many generations.
    """

    def __init__(self, pair: Pair, material: TrainingMixture, most: int = MOST_GENERATIONS) -> None:
        held_out = study(material.validation.examples, material.validation_records)
        self._split: Split = "validation" if held_out else "train"
        self._studied = _spread(held_out or study(material.failures.examples, material.failure_records), most)
        self._pair = pair
        pair.draft.eval()
        self._forward = make_forward(pair.draft, "draft", lambda _line: None)
        self._kinds = list(_kinds(pair, self._studied))

    def tally(self) -> dict[str, float]:
        """The acceptance of the draft as it is now, summed by kind."""
        return tally(self._kinds, self._acceptance())

    def lessons(self, learned_from: Counts, before: dict[str, float] | None) -> TokenReport:
        """The table for the draft as it is now; `before` is the `tally` of the start, None where it is not known."""
        rejections = np.concatenate([rejected(one) for one in self._studied])
        known = before if before is not None and before.keys() == set(self._kinds) else None
        kinds = by_kind(self._kinds, rejections, known, self._acceptance())
        return TokenReport(learned_from, count(self._studied), self._split, kinds)

    def _acceptance(self) -> NDArray[np.float64]:
        self._pair.draft.eval()
        return np.concatenate([self._weights(one) for one in self._studied])

    def _weights(self, studied: Studied) -> NDArray[np.float64]:
        example, record = studied
        log_p = log_probs(record.log_p[: len(example.labels)])
        return position_weights(log_p, draft_log_q(self._forward, example, self._pair.width), record.rule)


def draft_log_q(forward: Forward, example: Example, width: int) -> NDArray[np.float64]:
    """log q(y) at the supervised positions of an example under its sampler, (n,), -inf where q has no mass.

    Args:
        forward: the draft's logits at chosen positions.
        example: with at least one label.
        width: ids that target and draft share.
    """
    rows = forward.hidden(mx.array([example.inputs]), mx.array(list(example.positions)))
    labels = mx.array(example.labels)
    found, size = [], positions_at_a_time(width)
    for start in range(0, len(example.labels), size):
        piece = slice(start, start + size)
        log_q = sampling_log_probs(forward.head(rows[piece]), example.sampler, width)
        found.append(np.array(mx.take_along_axis(log_q, labels[piece, None], axis=-1).squeeze(-1), np.float64))
    return np.concatenate(found)


def _spread(studied: list[Studied], most: int) -> list[Studied]:
    """At most so many, evenly over the log's order: sources keep about their shares."""
    if len(studied) <= most:
        return studied
    return [studied[i * len(studied) // most] for i in range(most)]


def _kinds(pair: Pair, studied: list[Studied]) -> Iterator[str]:
    kinds = TokenKinds(pair.tokenizer, pair.stop_tokens)
    for example, _ in studied:
        yield from kinds.of(example.ids[: example.prompt_length], example.labels)
