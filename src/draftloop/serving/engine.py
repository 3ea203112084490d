"""The engine: it owns both models, and decodes all requests under way turn by turn. Knows no HTTP and no file.

    submit -> waiting -> under way (at most `max_concurrent`) -> events to whoever asked, the output to `on_output`

A turn of a request is a part of its prompt, a round, or a few plain steps. Requests take turns, so none waits for
another one's whole answer. Where several are past their prompts, a batch of plain steps may be faster than speculation
in turn (`tempo`); prompts are read between its steps.

MLX's streams belong to a thread, and a process that ends after a thread which had some may crash: so `run` is called on
the main thread, and HTTP has one of its own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import mlx.core as mx
from mlx import nn

from ..caches import RewindableCache, new_cache
from ..data.records import Finish
from ..decoding.batch_probe import batches_exactly
from ..decoding.decoder import KnownPrefix, Round
from ..decoding.plain_batch import PlainBatch
from ..errors import DraftloopError
from ..runtime.memory import is_out_of_memory
from .api_error import ApiError
from .error_middleware import frames
from .job import Job
from .metrics import Metrics
from .prefix_cache import PrefixCache, Shelf
from .served import Served, reader_of
from .tempo import Tempo

_log = logging.getLogger(__name__)

TARGET = "target"  # reads its own prompt caches, which outlive any adapter
SLACK = 64  # tokens that every cache takes back at once: the most that a request may draft
PLAIN_AT_ONCE = 16  # plain steps of a turn, where a request is alone
_IDLE = 0.25  # seconds between two looks at what else there is to do


class Full(Exception):
    """As many requests wait as may."""


@dataclass(frozen=True)
class Capacity:
    """How many requests at once.

    Attributes:
        max_concurrent: under way.
        queue: waiting beside them.
        prompt_cache_bytes: of caches of earlier requests.
    """

    max_concurrent: int
    queue: int
    prompt_cache_bytes: int


class Engine:
    """Decodes until `stop`.

    Args:
        load: loads the models.
        limits: how many requests at once.
        on_output: called with every job that has ended, however it ended.
        when_idle: called while nothing is under way; True if it did something, and is called again at once.
        metrics: counts what is decoded.
        wants: whether what a request brings is of use to `on_output`, asked when it begins.
        on_ready: called when the first request can be answered.
        on_request: called for every request, on the thread that brings it, before it waits; must not wait.
        renew: what requests that begin are decoded with from now on, where that has changed; asked between two turns.
    """

    def __init__(
        self,
        load: Callable[[], Served],
        limits: Capacity,
        on_output: Callable[[Job], None],
        when_idle: Callable[[], bool],
        metrics: Metrics,
        wants: Callable[[Job], bool] = lambda _job: False,
        on_ready: Callable[[], None] = lambda: None,
        renew: Callable[[Served], Served | None] = lambda _served: None,
        on_request: Callable[[], None] = lambda: None,
    ) -> None:
        self._load, self._limits = load, limits
        self._on_output, self._when_idle, self._metrics, self._wants = on_output, when_idle, metrics, wants
        self._on_ready, self._renew, self._on_request = on_ready, renew, on_request
        self._batches = False
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._deadline: float | None = None  # of a server that stops
        self._tempo = Tempo()
        self._batch: PlainBatch | None = None
        self.prefixes = PrefixCache(limits.prompt_cache_bytes)
        self.served: Served | None = None

    # From any thread -------------------------------------------------------------------------------------------------

    def submit(self, job: Job) -> None:
        """Let a request wait for its turn. Raises Full, or ApiError where it is stopping."""
        self._on_request()
        with self._changed:
            if self._deadline is not None:
                raise ApiError(503, "the server is stopping; expected a request before that")
            if self._is_full():
                wanted = [one for one in self._waiting if not one.cancelled.is_set()]  # nobody waits for the others
                self._waiting = deque(wanted)
            if self._is_full():
                raise Full
            self._waiting.append(job)
            self._changed.notify()

    def _is_full(self) -> bool:
        return len(self._waiting) >= self._limits.queue + self._limits.max_concurrent - len(self._running)

    @property
    def counts(self) -> tuple[int, int]:
        """Requests under way, and waiting."""
        return len(self._running), len(self._waiting)

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way or waits."""
        return self.counts == (0, 0)

    @property
    def is_serving(self) -> bool:
        """Whether the models are there, and it is not stopping."""
        return self.served is not None and self._deadline is None

    def stop(self, grace: float) -> None:
        """Take no more requests, let those that are there finish for so many seconds, then cancel them."""
        with self._changed:
            self._deadline = time.perf_counter() + grace
            self._changed.notify()

    # On the model thread ---------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Load the models, and decode until `stop`. Raises whatever keeps it from that; all jobs are told then."""
        try:
            served = self._load()
            self._batches = batches_exactly(served.pair.target)  # which is tried, and takes a moment
            self.served = served
            self._on_ready()
            while self._goes_on():
                self._look_for_another_draft()
                self._admit()
                if self._running:
                    self._step()
                elif not self._when_idle():
                    self._wait()
            while self._has_time() and self._when_idle():
                pass
        except BaseException:
            self.stop(0)
            for job in (*self._running, *self._waiting):
                job.refuse(ApiError(500, "the server has failed; its log says why"))
            raise

    def _look_for_another_draft(self) -> None:
        assert self.served is not None
        renewed = self._renew(self.served)
        if renewed is not None:
            self.served = renewed
            self._forget_readers()

    def _forget_readers(self) -> None:
        """What was read with a draft that no request has any more is of no use."""
        assert self.served is not None
        pairs = (self.served.pair, *(job.work.pair for job in self._running))
        self.prefixes.keep_readers({TARGET, *map(reader_of, pairs)})

    def _has_time(self) -> bool:
        return self._deadline is not None and time.perf_counter() < self._deadline

    def _goes_on(self) -> bool:
        with self._changed:
            if self._deadline is None:
                return True
            if time.perf_counter() >= self._deadline:
                for job in (*self._waiting, *self._running):
                    job.cancelled.set()
            return bool(self._running or self._waiting)

    def _wait(self) -> None:
        with self._changed:
            if not self._waiting and self._deadline is None:
                self._changed.wait(_IDLE)

    def _admit(self) -> None:
        while len(self._running) < self._limits.max_concurrent:
            with self._changed:
                if not self._waiting:
                    return
                job = self._waiting[0]
                if not job.cancelled.is_set() and not self._fits(job):
                    return  # nor do those behind it, or it would wait for ever
                self._waiting.popleft()
            if job.cancelled.is_set():
                job.end("cancelled")
                continue
            with self._guarding(job):
                self._begin(job)
                self._running.append(job)

    def _fits(self, job: Job) -> bool:
        """Whether there is memory for a request beside those under way. One that never fits is refused as it begins."""
        assert self.served is not None
        room = self.served.room
        if room is None:
            return True
        job.reserved = job.reserved or room.bytes_of(len(job.tokens), self.served.longest(job.asked, len(job.tokens)))
        return job.reserved <= room.left(self._reserved()) or job.reserved > room.left(0)

    def _reserved(self) -> float:
        return sum(job.reserved for job in self._running)

    def _limit_prefixes(self, beginning: float = 0) -> None:
        """Caches of earlier requests have what those under way, and one that begins, leave."""
        assert self.served is not None
        if self.served.room is not None:
            self.prefixes.limit(self.served.room.left(self._reserved() + beginning))

    @contextmanager
    def _guarding(self, *jobs: Job) -> Iterator[None]:
        """Whatever goes wrong with requests ends these, and not the server."""
        try:
            yield
        except ApiError as error:
            self._refuse(jobs, error)
        except DraftloopError as error:
            self._refuse(jobs, ApiError(400, str(error)))
        except Exception as error:  # noqa: BLE001 - a client may have caused it, and there are others
            if is_out_of_memory(error):
                self._refuse(jobs, ApiError(503, "the request does not fit into memory beside what is under way"))
                del error
                self.prefixes.clear()
                mx.clear_cache()
            else:
                _log.error("%s while decoding:\n%s", type(error).__name__, frames(error))
                self._refuse(jobs, ApiError(500, "the server failed at this request"))

    def _refuse(self, jobs: Iterable[Job], error: ApiError) -> None:
        """End requests without more of an answer; those in a batch with them go on by themselves."""
        for job in jobs:
            if job in self._running:
                self._running.remove(job)
            if self._batch is not None and job.has_begun and job.work.decoding in self._batch.members:
                self._release()
            job.refuse(error)

    def _begin(self, job: Job) -> None:
        """Make the decoding of a request, from what earlier ones have read."""
        assert self.served is not None
        served = self.served
        if served.room is not None:
            served.room.check(len(job.tokens), served.longest(job.asked, len(job.tokens)))
        self._limit_prefixes(job.reserved)
        job.is_captured = self._wants(job)
        settings = served.settings(job.asked, len(job.tokens), captured=job.is_captured)
        policy = served.draft_length(job.asked, settings)
        target, read = self._known(job, TARGET, served.pair.target)
        draft, draft_read = self._known(job, reader_of(served.pair), served.pair.draft)
        job.begin(served.pair, settings, policy, KnownPrefix(target, read, draft, draft_read))
        self._metrics.taken_up(job.work.began - job.submitted)

    def _known(self, job: Job, reader: str, model: nn.Module) -> tuple[RewindableCache, int]:
        return self.prefixes.find(Shelf(job.owner, reader), job.tokens) or (new_cache(model, SLACK), 0)

    def _step(self) -> None:
        """One turn of each request; or one step of a batch, and a part of each prompt."""
        for job in [job for job in self._running if job.cancelled.is_set()]:
            with self._guarding(job):
                self._finish(job, "cancelled")
        reading = [job for job in self._running if not job.is_past_prompt]
        writing = [job for job in self._running if job.is_past_prompt]
        together = self._batches and len(writing) > 1 and all(job.work.decoding.is_between for job in writing)
        if together and self._tempo.choose(len(writing)) == "batch":
            self._batched(writing)
        else:
            self._release()
            for job in [job for job in writing if job in self._running]:
                self._timed_turn(job, len(writing))
        for job in reading:
            self._turn(job)

    def _timed_turn(self, job: Job, count: int) -> None:
        began, before = time.perf_counter(), len(job.work.output)
        self._turn(job)
        gained = len(job.work.output) - before
        if count > 1 and gained:  # a draft that catches up says nothing of rounds
            self._tempo.note("turns", count, gained, time.perf_counter() - began)

    def _turn(self, job: Job) -> None:
        """A part of the prompt, or a round."""
        work = job.work
        work.decoding.most_plain_steps = PLAIN_AT_ONCE if len(self._running) == 1 else 1
        with self._guarding(job):
            turn = next(work.turns)
            if turn is None:
                self._keep_prompt(job)
            else:
                self._deliver(job, turn)

    def _batched(self, jobs: list[Job]) -> None:
        assert self.served is not None
        members, began = [job.work.decoding for job in jobs], time.perf_counter()
        rounds: list[Round] = []
        with self._guarding(*jobs):
            if self._batch is None or self._batch.members != members:
                self._release()
                self._batch = PlainBatch(self.served.pair.target, members)
            batch, self._batch = self._batch, None  # after a step that failed nobody knows what it holds
            rounds = batch.step()
            self._batch = batch
        for job, round_ in zip(jobs, rounds, strict=False):  # there are none where it went wrong
            with self._guarding(job):
                self._deliver(job, round_)
        if rounds:
            self._tempo.note("batch", len(jobs), len(jobs), time.perf_counter() - began)  # joins and leaves count

    def _deliver(self, job: Job, round_: Round) -> None:
        """Send what a round has brought, and end the request where it ends."""
        began, before = job.is_past_prompt, job.work.latest
        count = job.take(round_)
        if began:
            self._metrics.tokens(count, job.work.latest - before)
        else:
            self._metrics.prompt(len(job.tokens), job.cached, job.work.latest - before)
            self._metrics.first_token(job.work.latest - job.submitted, count)
        ends = job.work.text.stopped or job.work.decoding.finish is not None
        drafted = min(len(round_.proposals), count) if ends else len(round_.proposals)
        self._metrics.round(drafted, min(round_.accepted, drafted))
        if job.work.text.stopped:
            self._finish(job, "stop")
        elif job.work.decoding.finish is not None:
            self._finish(job, job.work.decoding.finish)

    def _release(self) -> bool:
        """End the batch, if there is one: its members go on by themselves. False where their caches are lost."""
        batch, self._batch = self._batch, None
        is_whole = batch is None
        if batch is not None:
            with self._guarding(*(job for job in self._running if job.work.decoding in batch.members)):
                batch.release()
                is_whole = True
        return is_whole

    def _finish(self, job: Job, finish: Finish) -> None:
        assert self.served is not None
        self._running.remove(job)
        is_whole = True
        if self._batch is not None and job.work.decoding in self._batch.members:
            is_whole = self._release()
        self._metrics.finished(finish)  # before its client hears of it
        job.end(finish)
        self._on_output(job)
        if is_whole:  # else its cache lacks what the batch has read
            self._keep_output(job)
        self._forget_readers()
        self._limit_prefixes()

    def _keep_prompt(self, job: Job) -> None:
        """Where a cache has states, which cannot be trimmed later: what it is when it has read the prompt."""
        prompt, decoding = job.tokens[:-1], job.work.decoding
        if decoding.emitted:  # it is the draft that catches up
            return
        job.work.read = job.work.read or (time.perf_counter() if decoding.has_read_prompt else None)
        draft, lacks = decoding.draft_cache
        if decoding.target_cache.has_states and decoding.has_read_prompt:
            self.prefixes.keep(Shelf(job.owner, TARGET), prompt, decoding.target_cache.copy())
        if draft is not None and draft.has_states and lacks == 1:
            self.prefixes.keep(Shelf(job.owner, reader_of(job.work.pair)), prompt, draft.copy())

    def _keep_output(self, job: Job) -> None:
        """The caches of a request that has ended; an output that was cut off between two turns is whole in them."""
        work = job.work
        everything = (*job.tokens, *work.emitted)
        if not job.is_past_prompt or not work.decoding.is_between:
            return
        self.prefixes.keep(Shelf(job.owner, TARGET), everything[:-1], work.decoding.target_cache)
        draft, lacks = work.decoding.draft_cache
        if draft is not None and lacks < len(everything):
            self.prefixes.keep(Shelf(job.owner, reader_of(work.pair)), everything[: len(everything) - lacks], draft)
