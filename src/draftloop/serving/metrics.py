"""What `/metrics` shows: vLLM's and llama.cpp's names under our prefix. Knows no model, and has no global registry.

No label has a value that a client chose: paths, statuses, positions and reasons are from fixed lists. Every method may
be called from any thread.
"""

from __future__ import annotations

from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from ..data.records import Finish
from .idle_training import State

CONTENT_TYPE = CONTENT_TYPE_LATEST
PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics"})
MOST_POSITIONS = 64  # the largest K that can be configured
NotCaptured = Literal["queue_full", "write_failed", "penalties", "not_stored", "sampled_out", "unusable"]
"""Why a generation is not in the log: no room before the writer; the disk refused; p and q were changed by penalties;
`store: false`; capture_rate; a record cannot be made of it."""

_REQUEST = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600)
_FIRST = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120)
_BETWEEN = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    """The numbers of one server. Seconds are those of the wall clock."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._speculation()
        self._requests()
        self._tokens()
        self._learning()

    def _speculation(self) -> None:
        self._drafts = self._counter("spec_decode_num_drafts", "Rounds with a draft.")
        self._drafted = self._counter("spec_decode_num_draft_tokens", "Draft tokens.")
        self._accepted = self._counter("spec_decode_num_accepted_tokens", "Accepted draft tokens.")
        by_position = "Accepted draft tokens, by their position in the draft."
        self._positions = self._counter("spec_decode_num_accepted_tokens_per_pos", by_position, "position")

    def _requests(self) -> None:
        self._answers = self._counter("requests", "Answers; 499: the client left.", "path", "status")
        self._latency = self._histogram("e2e_request_latency_seconds", "Request to end of answer.", _REQUEST, "path")
        self._finished = self._counter("request_success", "Generations, by how they ended.", "finished_reason")
        for reason in get_args(Finish):
            self._finished.labels(reason)
        self._running = self._gauge("num_requests_running", "Requests that are decoded.")
        self._waiting = self._gauge("num_requests_waiting", "Requests that wait for their turn.")
        self._queue_time = self._histogram("request_queue_time_seconds", "Wait for a turn.", _FIRST)
        self._processing = self._gauge("requests_processing", "num_requests_running, by llama.cpp's name.")
        self._deferred = self._gauge("requests_deferred", "num_requests_waiting, by llama.cpp's name.")

    def _tokens(self) -> None:
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts, cached ones too.")
        self._prompt_seconds = self._counter("prompt_seconds", "Time of prompts' forward passes.")
        self._cache_queries = self._counter("prefix_cache_queries", "Tokens of prompts looked for in the cache.")
        self._cache_hits = self._counter("prefix_cache_hits", "Tokens of prompts that the cache had.")
        self._cache_bytes = self._gauge("prompt_cache_bytes", "Size of the caches of earlier prompts.")
        self._generated = self._counter("generation_tokens", "Tokens generated.")
        self._predicted = self._counter("tokens_predicted", "generation_tokens, by llama.cpp's name.")
        self._predicted_seconds = self._counter("tokens_predicted_seconds", "Time of generating.")
        self._first = self._histogram("time_to_first_token_seconds", "Request to first token.", _FIRST)
        self._between = self._histogram("inter_token_latency_seconds", "Time per token after the first.", _BETWEEN)

    def _learning(self) -> None:
        self._captured = self._counter("records_captured", "Generations written to the log.")
        self._dropped = self._counter("records_dropped", "Generations that are not in the log, by reason.", "reason")
        for reason in get_args(NotCaptured):
            self._dropped.labels(reason)
        self._not_swapped = self._counter("swaps_failed", "New champions that could not be put into use.")
        self._at_work = self._gauge("learner_at_work", "Whether a training is at work beside the server.")
        self._stopped = self._gauge("learner_stopped", "Whether one waits for the server to be idle again.")
        self._watching = self._gauge("learner_watching", "Whether the champion is being looked at without idle time.")
        self.captured_so_far = 0
        self._champion = Info("draftloop:champion", "The draft's adapter in use.", registry=self._registry)

    def round(self, drafted: int, accepted: int) -> None:
        """One round of speculative decoding; one without a draft does not count."""
        if not drafted:
            return
        self._drafts.inc()
        self._drafted.inc(drafted)
        self._accepted.inc(accepted)
        for position in range(min(accepted, MOST_POSITIONS)):
            self._positions.labels(position).inc()

    def prompt(self, tokens: int, cached: int, seconds: float) -> None:
        """A prompt was read: all its tokens, those that the cache had, the time of the others."""
        self._prompt_tokens.inc(tokens)
        self._prompt_seconds.inc(seconds)
        self._cache_queries.inc(tokens)
        self._cache_hits.inc(cached)

    def cache_bytes(self, size: int) -> None:
        """How much the prompt cache holds now."""
        self._cache_bytes.set(size)

    def first_token(self, seconds: float, count: int = 1) -> None:
        """A request's first tokens are there, so long after the request."""
        self._first.observe(seconds)
        self._generated.inc(count)
        self._predicted.inc(count)

    def tokens(self, count: int, seconds: float) -> None:
        """A round gave `count` more tokens of a request, `seconds` after its last ones."""
        self._generated.inc(count)
        self._predicted.inc(count)
        self._predicted_seconds.inc(seconds)
        for _ in range(count):
            self._between.observe(seconds / count)

    def requests(self, running: int, waiting: int) -> None:
        """How many requests there are now."""
        for gauge in (self._running, self._processing):
            gauge.set(running)
        for gauge in (self._waiting, self._deferred):
            gauge.set(waiting)

    def taken_up(self, seconds: float) -> None:
        """A request's turn came, after so long a wait."""
        self._queue_time.observe(seconds)

    def finished(self, reason: Finish) -> None:
        """A generation ended."""
        self._finished.labels(reason).inc()

    def answered(self, path: str, status: int, seconds: float) -> None:
        """A request was answered, or its client left (499)."""
        known = path if path in PATHS else "other"
        self._answers.labels(known, status).inc()
        self._latency.labels(known).observe(seconds)

    def captured(self, count: int) -> None:
        """So many records were written."""
        self._captured.inc(count)
        self.captured_so_far += count

    def dropped(self, reason: NotCaptured, count: int = 1) -> None:
        """So many generations will not be in the log."""
        self._dropped.labels(reason).inc(count)

    def champion(self, version: str) -> None:
        """The version in use; `base` for none."""
        self._champion.info({"version": version})

    def not_swapped(self) -> None:
        """A new champion cannot be used, and the draft in use stays."""
        self._not_swapped.inc()

    def learner(self, state: State) -> None:
        """What the child that trains, or watches the champion, is doing."""
        self._at_work.set(state in ("at work", "ending"))
        self._stopped.set(state == "stopped")
        self._watching.set(state == "watching")

    def render(self) -> bytes:
        """All of it in Prometheus's text format, CONTENT_TYPE."""
        return generate_latest(self._registry)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"draftloop:{name}", meaning, labels, registry=self._registry)

    def _gauge(self, name: str, meaning: str) -> Gauge:
        return Gauge(f"draftloop:{name}", meaning, registry=self._registry)

    def _histogram(self, name: str, meaning: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"draftloop:{name}", meaning, labels, buckets=buckets, registry=self._registry)
