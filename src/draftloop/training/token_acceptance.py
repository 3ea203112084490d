"""The draft's acceptance token by token on a few generations, without the target: what the token report is made of.

One example with n labels -> the draft's logits at its n supervised positions -> log q(y) under the record's own sampler
-> w (n,) by log p(y) of the record and under the record's own rule. Logits come in pieces: of a large vocabulary all of
them at once are much.
"""

from __future__ import annotations

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
from .token_report import Counts, TokenReport, count, rejected_positions, rows_by_kind, sum_by_kind

MOST_GENERATIONS = 50


class TokenReporter:
    """The generations that a token report measures the draft on.

    Args:
        pair: its draft is measured as it is at each call.
        mixture: of the training; validation is measured on, or the failures where there is none.
        most: how many generations, evenly over the log's order, so that sources keep about their shares.
    """

    def __init__(self, pair: Pair, mixture: TrainingMixture, most: int = MOST_GENERATIONS) -> None:
        held_out = list(zip(mixture.validation.examples, mixture.validation_records, strict=True))
        self._split: Split = "validation" if held_out else "train"
        measured = held_out or list(zip(mixture.failures.examples, mixture.failure_records, strict=True))
        taken = min(most, len(measured))
        self._generations = [measured[i * len(measured) // taken] for i in range(taken)]
        self._pair = pair
        pair.draft.eval()
        self._forward = make_forward(pair.draft, "draft", lambda _line: None)
        kinds = TokenKinds(pair.tokenizer, pair.stop_tokens)
        self._kinds: list[str] = []
        for example, _ in self._generations:
            self._kinds += kinds.of(example.ids[: example.prompt_length], example.labels)

    def acceptance_by_kind(self) -> dict[str, float]:
        """The acceptance of the draft as it is now, summed by kind."""
        return sum_by_kind(self._kinds, self._acceptance())

    def report(self, learned_from: Counts, before: dict[str, float] | None) -> TokenReport:
        """For the draft as it is now; `before` is `acceptance_by_kind` of the start, None where it is not known."""
        rejected = np.concatenate([rejected_positions(generation) for generation in self._generations])
        known = before if before is not None and before.keys() == set(self._kinds) else None
        rows = rows_by_kind(self._kinds, rejected, known, self._acceptance())
        return TokenReport(learned_from, count(self._generations), self._split, rows)

    def _acceptance(self) -> NDArray[np.float64]:
        """w of every measured position, generation after generation."""
        self._pair.draft.eval()
        weights = []
        for example, record in self._generations:
            log_p = log_probs(record.log_p[: len(example.labels)])
            weights.append(position_weights(log_p, draft_log_q(self._forward, example, self._pair.width), record.rule))
        return np.concatenate(weights)


def draft_log_q(forward: Forward, example: Example, width: int) -> NDArray[np.float64]:
    """log q(y) at the supervised positions of an example under its sampler, (n,), -inf where q has no mass.

    Args:
        forward: the draft's logits at chosen positions.
        example: with at least one label.
        width: tokens that target and draft share.
    """
    rows = forward.hidden(mx.array([example.inputs]), mx.array(list(example.positions)))  # (n, D)
    labels = mx.array(example.labels)
    parts, size = [], positions_at_a_time(width)
    for start in range(0, len(example.labels), size):
        piece = slice(start, start + size)
        log_q = sampling_log_probs(forward.head(rows[piece]), example.sampler, width)  # (m, W)
        parts.append(np.array(mx.take_along_axis(log_q, labels[piece, None], axis=-1).squeeze(-1), np.float64))
    return np.concatenate(parts)
