"""From records to examples: which ids a model reads and which of them it is trained on. Knows no batch and no mlx.

A record with a prompt of P tokens and an output y_0 … y_{N−1} becomes ids (P + n), n = min(N, max_output_length). A
model that has read ids[:k] predicts ids[k], so label y_i belongs to the logits at position P − 1 + i: all n labels are
supervised, no prompt token is, and the last id is never read. A prompt is never cut; outputs are cut from the end.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from ...config import Data, Rule
from ...data.records import BlobRef, PairId, Record, Sampler
from ...data.usable import why_unusable

LONG_PROMPT = "prompt longer than data.max_prompt_length"


@dataclass(frozen=True, slots=True)
class Example:
    """One generation to train on.

    Attributes:
        record_id: the record that it was made of.
        source: the record's source.
        ids: prompt and supervised output, P + n of them.
        prompt_length: P ≥ 1.
        sampler: what the target sampled the output under.
        rule: what is accepted in the record.
        blob: where the collector kept what the target said.
        own: the labels are the draft's, not the target's: only the teacher's distributions can be learned from.
    """

    record_id: str
    source: str
    ids: tuple[int, ...]
    prompt_length: int
    sampler: Sampler
    rule: Rule = "rejection"
    blob: BlobRef | None = None
    own: bool = False

    @property
    def labels(self) -> tuple[int, ...]:
        """The n ids that are predicted."""
        return self.ids[self.prompt_length :]

    @property
    def inputs(self) -> tuple[int, ...]:
        """What a model reads: all but the last id."""
        return self.ids[:-1]

    @property
    def positions(self) -> range:
        """Where in `inputs` the labels are predicted, in their order."""
        return range(self.prompt_length - 1, len(self.ids) - 1)

    def shortened(self, tokens: int) -> Example:
        """The same example with only its first `tokens` labels."""
        return replace(self, ids=self.ids[: self.prompt_length + tokens])


@dataclass
class Selection:
    """Examples, and what was left out on the way to them.

    Attributes:
        left_out: records that could not be used, counted by reason.
        cut_labels: output tokens dropped because of `data.max_output_length`.
    """

    examples: list[Example] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    cut_labels: int = 0

    @property
    def tokens(self) -> int:
        """Supervised tokens."""
        return sum(len(example.labels) for example in self.examples)

    @property
    def ids(self) -> list[str]:
        """The records' ids, in order."""
        return [example.record_id for example in self.examples]


def select(records: Iterable[Record], pair: PairId, width: int, data: Data) -> Selection:
    """The examples of the pair's usable records, in their order, and a count of the others by reason.

    Args:
        records: of any pair.
        pair: whose target and tokenizer are trained for.
        width: ids that target and draft share.
        data: the length limits.
    """
    selection = Selection()
    for record in records:
        reason = _unusable(record, pair, width, data)
        if reason is not None:
            selection.left_out[reason] += 1
            continue
        selection.examples.append(to_example(record, data.max_output_length))
        selection.cut_labels += max(0, len(record.target_output) - data.max_output_length)
    return selection


def to_example(record: Record, max_output_length: int) -> Example:
    """The example of a record; its output is cut from the end to `max_output_length` tokens."""
    return Example(
        record_id=record.id,
        source=record.source,
        ids=record.prompt_tokens + record.target_output[:max_output_length],
        prompt_length=len(record.prompt_tokens),
        sampler=record.sampler,
        rule=record.rule,
        blob=record.teacher,
    )


def examples_hash(examples: Sequence[Example]) -> str:
    """sha256 of what the examples say, in their order: two equal ones train alike, wherever their blobs lie."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr(replace(example, blob=None)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _unusable(record: Record, pair: PairId, width: int, data: Data) -> str | None:
    too_long = LONG_PROMPT if len(record.prompt_tokens) > data.max_prompt_length else None
    return why_unusable(record, pair, width) or too_long
