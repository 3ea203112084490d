"""The training mixture: failures to train on, a pool to replay from, and validation. Knows no model and no mlx.

    log, split train       -> failures of the pair       -> trained on once an epoch, whether or not they were before
    replay buffer          -> what must not be forgotten -> drawn from
    log, split validation  -> validation                 -> never trained on

The log does not even decode the other splits, and what is near a prompt of another split is left out. What was accepted
whole in the split `train` comes in through the replay buffer alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ...config import Config, Training
from ...data.joined_groups import PromptGroups
from ...data.log import FailureLog
from ...data.records import PairId, Record
from ...data.replay import ReplayBuffer, drawable
from ...data.usable import CANCELLED, NEAR_TWO_SPLITS, describe_counts, is_of_pair
from ...errors import NothingToDo, RunError
from .batch_plan import epoch_tokens, labels_by_source
from .contradiction import CONTRADICTED, CONTRADICTED_SOURCE, SpotChecks
from .examples import Selection, examples_hash, select

if TYPE_CHECKING:
    from ...models.pair import Pair


@dataclass(frozen=True)
class TrainingMixture:
    """Examples by what they are for.

    Attributes:
        failures: trained on once an epoch.
        pool: replayed from; empty where the buffer is, or where nothing is to be replayed.
        validation: never trained on.
        failure_records: the record of each of `failures`, for the replay buffer to remember.
        validation_records: the record of each of `validation`.
        unusable: ids of the target's failures that are not among them: too long, or another tokenizer's.
        left_out: failures and validation generations that could not be used, counted by reason; of both splits what is
            near a prompt of another one.
        warnings: lines that a person should see, whoever started the training.
        damaged_lines: numbers of the log's lines that could not be read, and `damaged_replay` of the replay buffer's.
    """

    failures: Selection
    pool: Selection
    validation: Selection
    failure_records: list[Record]
    validation_records: list[Record]
    unusable: tuple[str, ...] = ()
    left_out: Counter[str] = field(default_factory=Counter)
    warnings: tuple[str, ...] = ()
    damaged_lines: tuple[int, ...] = ()
    damaged_replay: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """What finds the same mixture again: record ids and a hash of each part, and what was left out."""
        parts = self._parts().items()
        return {
            **{name: part.ids for name, part in parts},
            "sha256": {name: examples_hash(part.examples) for name, part in parts},
            "unusable": self.unusable,
            "left_out": dict(self.left_out),
            "warnings": self.warnings,
        }

    def without_contradicted(self, checks: SpotChecks) -> TrainingMixture:
        """The same without the records that the target contradicts, and those of sources that it contradicts.

        Raises:
            NothingToDo: no failure is left.
        """

        def stays(record_id: str, source: str) -> bool:
            return record_id not in checks.contradicted and source not in checks.sources

        failures, failure_records = _kept(self.failures, self.failure_records, stays)
        validation, validation_records = _kept(self.validation, self.validation_records, stays)
        pool = [example for example in self.pool.examples if stays(example.record_id, example.source)]
        gone = [record for record in self.failure_records if not stays(record.id, record.source)]
        measured = len(self.validation_records) - len(validation_records)
        left_out = self.left_out.copy()
        left_out += Counter(
            CONTRADICTED_SOURCE if record.source in checks.sources else CONTRADICTED for record in gone
        ) + Counter({CONTRADICTED_SOURCE: measured})
        if not failures.examples:
            raise NothingToDo(f"no usable failure is left: {describe_counts(left_out)}. {'; '.join(checks.warnings())}")
        return replace(
            self,
            failures=failures,
            pool=replace(self.pool, examples=pool),
            validation=validation,
            failure_records=failure_records,
            validation_records=validation_records,
            unusable=(*self.unusable, *(record.id for record in gone)),
            left_out=left_out,
            warnings=(*self.warnings, *checks.warnings()),
        )

    def summary(self) -> dict[str, dict[str, Any]]:
        """Records, supervised tokens and hash of each part."""
        return {
            name: {"records": len(part.examples), "tokens": part.tokens, "sha256": examples_hash(part.examples)}
            for name, part in self._parts().items()
        }

    def notes(self, settings: Training) -> list[str]:
        """What a person should know before the training starts, a line each."""
        counts = f"{len(self.failures.examples)} failures, {self.failures.tokens:,} supervised tokens"
        validation = f"{len(self.validation.examples)} generations"
        if settings.val_batches > 0:
            validation = f"{settings.val_batches} micro-batches of {validation}"
        notes = [f"training on {counts}; validation on {validation}", *self.warnings]
        if self.left_out:
            notes.append(f"left out: {describe_counts(self.left_out)}")
        notes += self._bounded(settings)
        if self.failures.cut_labels:
            notes.append(f"{self.failures.cut_labels:,} labels beyond data.max_output_length were cut off")
        if self.damaged_lines:
            notes.append(f"damaged lines of the log, passed over: {', '.join(map(str, self.damaged_lines))}")
        if self.damaged_replay:
            lines = ", ".join(map(str, self.damaged_replay))
            notes.append(f"damaged lines of the replay buffer, moved to replay.jsonl.broken: {lines}")
        if not self.validation.examples:
            notes.append("no validation generation: no early stop, and the last weights are kept")
        elif settings.val_batches == 0:
            notes.append("training.val_batches is 0: no early stop, and the last weights are kept")
        if settings.replay_ratio > 0:
            notes.append(
                f"replay draws from {len(self.pool.examples)} generations"
                if self.pool.examples
                else "the replay buffer has nothing to draw from: training on failures alone"
            )
        return notes

    def _bounded(self, settings: Training) -> list[str]:
        """The sources of which an epoch has less than there is, in a line."""
        drawn = epoch_tokens(self.failures.examples, self.pool.examples, settings).fresh
        if drawn is None:
            return []
        there = labels_by_source(self.failures.examples)
        less = [source for source in sorted(there) if drawn[source] < there[source]]
        had, has = (sum(tokens[source] for source in less) / there.total() for tokens in (there, drawn))
        times = max(drawn[source] / there[source] for source in there)
        line = (
            f"{' and '.join(less)}: {had:.0%} of the failures' tokens, but {has:.0%} of each epoch's, drawn anew; "
            f"failures of other sources come up to {times:.1f} times an epoch "
            f"(training.max_source_share is {settings.max_source_share:g})"
        )
        return [line]

    def _parts(self) -> dict[str, Selection]:
        return {"failures": self.failures, "replay_pool": self.pool, "validation": self.validation}


def gather(log: FailureLog, replay: ReplayBuffer, pair: Pair, config: Config) -> TrainingMixture:
    """The mixture of a new training; the replay buffer is brought up to date first.

    The pair's own records are held, for almost every one is a failure, and those are needed to the end of the training.

    Raises:
        NothingToDo: no failure that could be trained on.
        StoreError: the log or the buffer cannot be used.
    """
    # 1. The log, one record an id: the latest.
    read = log.records(splits={"train", "validation"})
    records = list({record.id: _needed(record, pair.identity) for record in read}.values())
    damaged = tuple(damage.line_number for damage in log.damage)
    left_out = Counter({NEAR_TWO_SPLITS: log.near_two_splits} if log.near_two_splits else {})
    train = [record for record in records if record.split == "train"]
    validating = [record for record in records if record.split == "validation"]
    cancelled = [record for record in validating if record.finish == "cancelled"]  # these train, and measure nothing
    validating = [record for record in validating if record.finish != "cancelled"]
    left_out += Counter({CANCELLED: len(cancelled)})

    # 2. Failures: generations of the split `train` in which a token of the draft was rejected.
    failed = [record for record in train if record.is_failure]
    failures = select(failed, pair.identity, pair.width, config.data)
    left_out += failures.left_out

    # 3. The replay pool.
    seed, share = config.training.seed, config.training.max_source_share
    ours = [record for record in train if is_of_pair(record, pair.identity)]
    latest = {record.id: record for record in train}
    groups = log.groups()
    buffered = [latest.get(record.id, record) for record in replay.refresh(lambda: ours, seed, share)]
    damaged_replay = tuple(damage.line_number for damage in replay.damage)
    if not failures.examples:
        raise NothingToDo(_why_nothing(log, train, left_out))
    kept = [record for record in buffered if is_of_pair(record, pair.identity) and _is_of_train(groups, record)]
    used = set(failures.ids)
    failure_records = [record for record in failed if record.id in used]
    pool = drawable(kept, failure_records, ours) if config.training.replay_ratio > 0 else []

    # 4. Validation, and all of it together.
    validation = select(validating, pair.identity, pair.width, config.data)
    measured = set(validation.ids)
    return TrainingMixture(
        failures=failures,
        pool=select(pool, pair.identity, pair.width, config.data),
        validation=validation,
        failure_records=failure_records,
        validation_records=[record for record in validating if record.id in measured],
        unusable=tuple(r.id for r in failed if r.id not in used and r.pair.target == pair.identity.target),
        left_out=left_out + validation.left_out,
        damaged_lines=damaged,
        damaged_replay=damaged_replay,
    )


def gather_again(
    saved: Mapping[str, Any], log: FailureLog, replay: ReplayBuffer, pair: Pair, config: Config
) -> TrainingMixture:
    """The mixture that `to_json` described, whatever was logged since.

    Raises:
        RunError: a record is gone, or is not what it was.
    """
    groups = log.groups()
    records = {record.id: record for record in replay.records() if _is_of_train(groups, record)}
    records.update((record.id, record) for record in log.records(splits={"train", "validation"}))
    try:
        ids = {name: list(saved[name]) for name in ("failures", "replay_pool", "validation")}
        hashes, unusable, left_out = dict(saved["sha256"]), tuple(saved["unusable"]), Counter(saved["left_out"])
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"the run's list of records is damaged ({error}); start a new training") from None
    missing = [record_id for part in ids.values() for record_id in part if record_id not in records]
    if missing:
        raise RunError(
            f"{len(missing)} records of the run are no longer in the log, or near a prompt of another split by now; "
            f"the first is {missing[0]}; start a new training"
        )
    parts = {name: [records[record_id] for record_id in part] for name, part in ids.items()}
    selections = {name: select(part, pair.identity, pair.width, config.data) for name, part in parts.items()}
    for name, selection in selections.items():
        if examples_hash(selection.examples) != hashes.get(name):
            raise RunError(f"the records of {name} are not what they were when the run began; start a new training")
    return TrainingMixture(
        failures=selections["failures"],
        pool=selections["replay_pool"],
        validation=selections["validation"],
        failure_records=parts["failures"],
        validation_records=parts["validation"],
        unusable=unusable,
        left_out=left_out,
        warnings=tuple(saved.get("warnings", ())),
    )


def _kept(
    selection: Selection, records: Sequence[Record], stays: Callable[[str, str], bool]
) -> tuple[Selection, list[Record]]:
    """Of examples and their records those that stay."""
    pairs = zip(selection.examples, records, strict=True)
    both = [(example, record) for example, record in pairs if stays(record.id, record.source)]
    cut = sum(len(record.target_output) - len(example.labels) for example, record in both)
    return replace(selection, examples=[example for example, _ in both], cut_labels=cut), [record for _, record in both]


def _is_of_train(groups: PromptGroups, record: Record) -> bool:
    """Whether all that a record of the replay buffer is near to is trained on; the log may have lost the record."""
    return groups.splits_near(record) <= {"train"}


def _needed(record: Record, pair: PairId) -> Record:
    """The record; without its outputs where it is another pair's, which is only counted."""
    if is_of_pair(record, pair):
        return record
    return replace(
        record,
        prompt="",
        messages=None,
        prompt_tokens=(),
        draft_output=(),
        target_output=(),
        disagreements=record.disagreements[:1],
        rounds=(),
        log_p=(),
        log_q=(),
    )


def _why_nothing(log: FailureLog, train: list[Record], left_out: Counter[str]) -> str:
    if not train:
        near = f" ({left_out[NEAR_TWO_SPLITS]} are near prompts of another split)" if left_out[NEAR_TWO_SPLITS] else ""
        return f"{log.path} holds no generation to train on{near}; run collect-data first"
    accepted = sum(not record.is_failure for record in train)
    reasons = left_out + Counter({"every draft token accepted": accepted})
    counts = describe_counts(reasons)
    return f"none of the {len(train)} generations to train on in {log.path} is a usable failure: {counts}"
