"""Finished outputs become records of the log, without any answer waiting for it.

    model thread: offer -> a record, where the draft proposed all along; else `due`, and when nothing is under way the
                  draft reads the output, and its rounds are simulated offline
    writer:       a bounded backlog -> the target's distributions -> the log

What does not fit is dropped and counted. A record is on disk a moment after it was made, or after the first idle moment
where its rounds are simulated.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ..collection.record import make_record
from ..data.log import FailureLog
from ..data.records import Finish, Record
from ..data.teacher_blobs import BlobFile
from ..data.teacher_top_k import TopK, encode_top_k
from ..decoding.decoder import Settings
from ..decoding.generation import Generation
from ..decoding.offline_rounds import simulate_rounds
from ..decoding.teacher_forced import TargetGeneration
from ..errors import StoreError
from ..models.pair import Pair
from ..prompts.prompt import Prompt
from .backlog import Backlog
from .error_middleware import frames
from .job import Job
from .metrics import Metrics, NotCaptured

_log = logging.getLogger(__name__)

MOST_WRITTEN = 64  # records that wait for the disk
MOST_WRITTEN_TOKENS = 1 << 18  # of their prompts and outputs; with 64 ids kept of each position 200 MB
MOST_DUE = 256  # outputs that wait for the draft
MOST_DUE_TOKENS = 1 << 20  # of them and their prompts
MOST_BYTES = 512 << 20  # of one model's distributions over an output that the draft has to read
_AT_ONCE = 32  # records of one append


@dataclass(frozen=True)
class _Due:
    """An output that the draft has to read."""

    pair: Pair
    prompt: Prompt
    tokens: tuple[int, ...]
    output: tuple[int, ...]
    settings: Settings
    source: str
    template_args: dict[str, Any]
    finish: Finish

    @property
    def size(self) -> int:
        """Tokens of prompt and output."""
        return len(self.tokens) + len(self.output)


class _RequestCame(Exception):
    """What was being read is read later."""


_Made = tuple[Record, TopK | None]


class Capture:
    """From finished jobs to the log.

    Args:
        log, blobs: where records go, and what the teacher gave.
        metrics: counts what is captured and what is dropped.
        rate: share of the outputs that is captured, 0 .. 1.
        drafts: K of the rounds that are simulated where a request wanted none.
        on_written: called after each append, on the writer's thread; the log belongs to that alone.
    """

    def __init__(
        self,
        log: FailureLog,
        blobs: BlobFile,
        metrics: Metrics,
        rate: float,
        drafts: int,
        on_written: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_written = on_written
        self._log, self._blobs, self._metrics, self._rate, self._drafts = log, blobs, metrics, rate, drafts
        self._made: Backlog[_Made] = Backlog(MOST_WRITTEN, MOST_WRITTEN_TOKENS)
        self._due: Backlog[_Due] = Backlog(MOST_DUE, MOST_DUE_TOKENS)
        self._at: _Due | None = None  # what is being read
        self._writer = threading.Thread(target=self._write, name="records", daemon=True)
        self._writer.start()

    # On the model thread ---------------------------------------------------------------------------------------------

    def wants(self, job: Job) -> bool:
        """Whether what a request brings is recorded; asked once, when it begins."""
        why = self._why_not(job)
        if why is not None:
            self._metrics.dropped(why)
        return why is None

    def offer(self, job: Job) -> None:
        """Take a job that has ended."""
        if not job.is_captured or job.finish is None or not job.work.output:
            return
        work = job.work
        prompt = job.asked.prompt
        if not isinstance(prompt, Prompt):
            prompt = Prompt(work.pair.tokenizer.decode(list(job.tokens)))
        finish = _finish_of(job)
        due = _Due(
            work.pair,
            prompt,
            job.tokens,
            tuple(work.output),
            _with_a_draft(work.settings, self._drafts),
            job.source,
            dict(job.asked.template_args),
            finish,
        )
        if all(round_.proposals for round_ in work.rounds):
            work.decoding.complete_bonus_draws()
            draws = work.decoding.bonus_draws
            self._hand_over(due, Generation.of_rounds(work.rounds, draws, finish))
        elif not self._due.offer(due, due.size):
            self._metrics.dropped("queue_full")

    def work(self, is_wanted: Callable[[], bool] = lambda: False) -> bool:
        """Let the draft read one output that it had no part in; whether there was one.

        Args:
            is_wanted: whether a request waits; a long prompt that is being read is begun anew later then.
        """
        if self._at is None:
            taken = self._due.take(1)
            if not taken:
                return False
            (self._at,) = taken

        def give_way() -> None:
            if is_wanted():
                raise _RequestCame

        try:
            self._simulate(self._at, give_way)
        except _RequestCame:
            return True
        except Exception as error:  # noqa: BLE001 - nobody waits for it, and whatever it is, the server goes on
            _log.error("%s while an output was read for its record:\n%s", type(error).__name__, frames(error))
            self._metrics.dropped("unusable")
        self._at = None
        return True

    def _simulate(self, due: _Due, give_way: Callable[[], None]) -> None:
        """Read an output with both models, and draw its rounds."""
        if 4 * due.pair.width * len(due.output) > MOST_BYTES:
            self._metrics.dropped("unusable")
            return
        generation = TargetGeneration(due.tokens, due.output, due.settings.sampler)
        ((_, found),) = simulate_rounds(due.pair, [generation], due.settings, on_part=give_way)
        self._hand_over(due, replace(found, finish=due.finish))

    def _why_not(self, job: Job) -> NotCaptured | None:
        if not job.asked.store:
            return "not_stored"
        if not job.asked.penalties.are_off:
            return "penalties"
        if random.random() >= self._rate:
            return "sampled_out"
        return None

    def _hand_over(self, due: _Due, generation: Generation) -> None:
        """To the writer."""
        record = make_record(
            due.pair,
            due.prompt,
            due.tokens,
            generation,
            due.settings,
            due.settings.sampler.seed,
            due.source,
            due.template_args,
        )
        if not self._made.offer((record, generation.rows), due.size):
            self._metrics.dropped("queue_full")

    # On the writer's thread ------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Write what was handed over, and end; what the draft has not read by now is dropped and counted."""
        self._metrics.dropped("queue_full", len(self._due) + (self._at is not None))
        self._made.close()
        self._writer.join()

    def _write(self) -> None:
        while made := self._made.wait(_AT_ONCE):
            self._append(made)
            try:
                self._on_written()
            except Exception as error:  # noqa: BLE001 - whatever it is, later records are written
                _log.error("%s after records were written:\n%s", type(error).__name__, frames(error))

    def _append(self, made: list[_Made]) -> None:
        try:
            contents = [None if rows is None else encode_top_k(rows) for _, rows in made]
            written = self._log.extend([record for record, _ in made], self._blobs, contents)
            self._metrics.captured(len(written))
        except Exception as error:  # noqa: BLE001 - whatever it is, the server goes on, and says how much is missing
            if len(made) > 1 and not isinstance(error, OSError):
                for one in made:  # one of them may be no record
                    self._append([one])
                return
            said = (
                error if isinstance(error, OSError | StoreError) else type(error).__name__
            )  # others may quote a prompt
            _log.error("%d records are not in the log: %s", len(made), said)
            self._metrics.dropped("write_failed", len(made))


def _with_a_draft(settings: Settings, drafts: int) -> Settings:
    return settings if settings.num_draft_tokens else replace(settings, num_draft_tokens=drafts)


def _finish_of(job: Job) -> Finish:
    """A stop string ends an output as a limit does: by what the target wrote, and not at a stop token."""
    assert job.finish is not None
    return "length" if job.finish == "stop" and job.work.output[-1] not in job.work.pair.stop_tokens else job.finish
