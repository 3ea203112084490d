"""From records to examples: which tokens a model reads and which of them it is trained on. Knows no mlx.

A record with a prompt of P tokens and an output y_0 … y_{N−1} becomes P + n tokens, n = min(N, max_output_length). A
model that has read k tokens predicts the next one, so label y_i belongs to the logits at position P − 1 + i:

    position     0 … P−2     P−1      P    …   P+n−2
    reads        prompt …    last     y_0  …   y_{n−2}
    label        none        y_0      y_1  …   y_{n−1}

All n output tokens are labels, among them the target's token at every position where a token of the draft was rejected;
no prompt token is. A prompt is never cut; an output is cut from the end.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...config import Data, Rule
from ...data.records import BlobRef, PairId, Record, Sampler
from ...data.usable import why_unusable
from ...errors import RunError

LONG_PROMPT = "prompt longer than data.max_prompt_length"
LENGTH_STEP = 16  # a row is padded to a multiple of so many tokens: few shapes repeat
POSITION_STEP = 64  # likewise the supervised positions of a batch


@dataclass(frozen=True, slots=True)
class Example:
    """One generation to train on.

    Runs on disk hold its fields by name (`from_json`), and a hash of its repr (`examples_hash`): a field that
    is renamed makes every run that was cut off before unusable.

    Attributes:
        record_id: the record that it was made of.
        source: the record's source.
        ids: prompt and supervised output, P + n tokens.
        prompt_length: P ≥ 1.
        sampler: what the target sampled the output under.
        rule: the acceptance rule of the record.
        blob: where the collector kept the teacher probabilities.
        own: the output is the draft's own (an on-policy sample): only teacher probabilities can be learned from.
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
        """The n tokens that are predicted."""
        return self.ids[self.prompt_length :]

    @property
    def inputs(self) -> tuple[int, ...]:
        """What a model reads: all but the last token."""
        return self.ids[:-1]

    @property
    def positions(self) -> range:
        """Where in `inputs` the labels are predicted, in their order."""
        return range(self.prompt_length - 1, len(self.ids) - 1)

    def shortened(self, tokens: int) -> Example:
        """The same example with only its first `tokens` labels."""
        return replace(self, ids=self.ids[: self.prompt_length + tokens])


def round_up(count: int, step: int) -> int:
    """The next multiple of `step`, at least one: an array of size 0 is no shape that models take."""
    return max(1, -(-count // step)) * step


def padded_shape(examples: Sequence[Example]) -> tuple[int, int]:
    """(L, M) of a micro-batch of at least one example: inputs a row, and supervised positions in all."""
    length = max(len(example.inputs) for example in examples)
    labels = sum(len(example.labels) for example in examples)
    return round_up(length, LENGTH_STEP), round_up(labels, POSITION_STEP)


@dataclass
class Selection:
    """Examples, and what was left out on the way to them.

    Attributes:
        left_out: records that could not be used, counted by reason.
        cut_labels: output tokens beyond `data.max_output_length`, which were dropped.
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
        width: tokens that target and draft share.
        data: the length limits.
    """
    selection = Selection()
    for record in records:
        too_long = LONG_PROMPT if len(record.prompt_tokens) > data.max_prompt_length else None
        reason = why_unusable(record, pair, width) or too_long
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


def from_json(values: Iterable[Mapping[str, Any]]) -> list[Example]:
    """The examples whose fields by name these are, the samples of a run that goes on. Raises RunError: damaged."""
    try:
        return [Example(**{**v, "ids": tuple(v["ids"]), "sampler": Sampler(**v["sampler"])}) for v in values]
    except (KeyError, TypeError) as error:
        raise RunError(f"the samples that this run was given are damaged ({error}); start a new training") from None


def examples_hash(examples: Sequence[Example]) -> str:
    """sha256 of some examples in their order, but for the places of their blobs: equal ones train alike."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr(replace(example, blob=None)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
