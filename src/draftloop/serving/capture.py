"""Finished outputs become records of the log, without any answer waiting for it.

    model thread: offer -> a record, where the draft proposed all along; else `due`, and when nothing is under way the
                  draft reads the output, and its rounds are simulated offline
    writer:       a bounded queue -> the target's distributions -> the log

What does not fit is dropped and counted. A record is on disk a moment after it was made, or after the first idle moment
where its rounds are simulated.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
from collections import deque
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
from ..errors import DraftloopError
from ..models.pair import Pair
from ..prompts.prompt import Prompt
from .job import Job
from .metrics import Metrics, NotCaptured

_log = logging.getLogger(__name__)

MOST_WRITTEN = 256  # records that wait for the disk
MOST_DUE = 512  # outputs that wait for the draft
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


_Made = tuple[Record, TopK | None]


class Capture:
    """From finished jobs to the log.

    Args:
        log, blobs: where records go, and what the teacher gave.
        metrics: counts what is captured and what is dropped.
        rate: share of the outputs that is captured, 0 .. 1.
    """

    def __init__(self, log: FailureLog, blobs: BlobFile, metrics: Metrics, rate: float) -> None:
        self._log, self._blobs, self._metrics, self._rate = log, blobs, metrics, rate
        self._queue: queue.Queue[_Made | None] = queue.Queue(MOST_WRITTEN)
        self._due: deque[_Due] = deque()
        self._writer = threading.Thread(target=self._write, name="records", daemon=True)
        self._writer.start()

    # On the model thread ---------------------------------------------------------------------------------------------

    def offer(self, job: Job) -> None:
        """Take a job that has ended."""
        if job.finish is None or not job.has_begun or not job.work.output:
            return
        why = self._why_not(job)
        if why is not None:
            self._metrics.dropped(why)
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
            work.settings,
            job.source,
            dict(job.asked.template_args),
            finish,
        )
        if all(round_.proposals for round_ in work.rounds):
            work.decoding.complete_bonus_draws()
            draws = work.decoding.bonus_draws
            self._hand_over(due, Generation.of_rounds(work.rounds, draws, finish))
        elif len(self._due) < MOST_DUE:
            self._due.append(due)
        else:
            self._metrics.dropped("queue_full")

    def work(self) -> bool:
        """Let the draft read one output that it had no part in; whether there was one."""
        if not self._due:
            return False
        due = self._due.popleft()
        generation = TargetGeneration(due.tokens, due.output, due.settings.sampler)
        ((_, found),) = simulate_rounds(due.pair, [generation], due.settings)
        self._hand_over(due, replace(found, finish=due.finish))
        return True

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
        try:
            self._queue.put_nowait((record, generation.rows))
        except queue.Full:
            self._metrics.dropped("queue_full")

    # On the writer's thread ------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Write what was handed over, and end."""
        self._queue.put(None)
        self._writer.join()

    def _write(self) -> None:
        ended = False
        while not ended:
            made = [self._queue.get()]
            while len(made) < _AT_ONCE and made[-1] is not None:
                try:
                    made.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            ended = made[-1] is None
            self._append([one for one in made if one is not None])

    def _append(self, made: list[_Made]) -> None:
        try:
            contents = [None if rows is None else encode_top_k(rows) for _, rows in made]
            written = self._log.extend([record for record, _ in made], self._blobs, contents)
            self._metrics.captured(len(written))
        except (DraftloopError, OSError) as error:  # the server goes on, and says how much is missing
            _log.error("%d records are not in the log: %s", len(made), error)
            self._metrics.dropped("write_failed", len(made))


def _finish_of(job: Job) -> Finish:
    """A stop string ends an output as a limit does: by what the target wrote, and not at a stop token."""
    assert job.finish is not None
    return "length" if job.finish == "stop" and job.work.output[-1] not in job.work.pair.stop_tokens else job.finish
