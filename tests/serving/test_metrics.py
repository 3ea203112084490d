"""What is counted, under which names, and what is no label."""

from __future__ import annotations

from typing import get_args

import pytest
from prometheus_client import REGISTRY
from samples import value, values

from draftloop.data.records import Finish
from draftloop.serving.metrics import PATHS, Metrics, NotCaptured


def test_rounds_are_counted_as_vllm_counts_them() -> None:
    metrics = Metrics()
    for drafted, accepted in [(4, 4), (4, 1), (2, 0), (0, 0)]:
        metrics.round(drafted, accepted)
    assert value(metrics, "spec_decode_num_drafts_total") == 3
    assert value(metrics, "spec_decode_num_draft_tokens_total") == 10
    assert value(metrics, "spec_decode_num_accepted_tokens_total") == 5
    per_position = [value(metrics, "spec_decode_num_accepted_tokens_per_pos_total", str(at)) for at in range(4)]
    assert per_position == [2, 1, 1, 1]


def test_tokens_and_their_times() -> None:
    metrics = Metrics()
    metrics.prompt(100, cached=60, seconds=0.5)
    metrics.first_token(0.7, count=3)
    metrics.tokens(4, seconds=0.2)
    metrics.cache_bytes(1000)
    shown = values(metrics)
    assert shown["prompt_tokens_total", ()] == shown["prefix_cache_queries_total", ()] == 100
    assert shown["prefix_cache_hits_total", ()] == 60
    assert shown["prompt_seconds_total", ()] == 0.5
    assert shown["prompt_cache_bytes", ()] == 1000
    assert shown["generation_tokens_total", ()] == shown["tokens_predicted_total", ()] == 7
    assert shown["tokens_predicted_seconds_total", ()] == pytest.approx(0.2)
    assert shown["time_to_first_token_seconds_sum", ()] == pytest.approx(0.7)
    assert shown["inter_token_latency_seconds_count", ()] == 4
    assert shown["inter_token_latency_seconds_sum", ()] == pytest.approx(0.2)
    assert shown["inter_token_latency_seconds_bucket", ("0.05",)] == 4


def test_requests_and_their_wait() -> None:
    metrics = Metrics()
    metrics.requests(running=3, waiting=2)
    metrics.taken_up(0.3)
    metrics.finished("stop")
    shown = values(metrics)
    assert shown["num_requests_running", ()] == shown["requests_processing", ()] == 3
    assert shown["num_requests_waiting", ()] == shown["requests_deferred", ()] == 2
    assert shown["request_queue_time_seconds_count", ()] == 1
    assert [shown["request_success_total", (reason,)] for reason in get_args(Finish)] == [1, 0, 0]


def test_records_and_the_champion() -> None:
    metrics = Metrics()
    assert all(value(metrics, "records_dropped_total", reason) == 0 for reason in get_args(NotCaptured))
    metrics.captured(3)
    metrics.dropped("queue_full")
    metrics.dropped("penalties", 2)
    metrics.champion("base")
    metrics.champion("v0003")
    shown = values(metrics)
    assert shown["records_captured_total", ()] == 3
    assert (shown["records_dropped_total", ("queue_full",)], shown["records_dropped_total", ("penalties",)]) == (1, 2)
    assert [labels for name, labels in shown if name == "champion_info"] == [("v0003",)]


def test_what_a_client_sends_is_no_label() -> None:
    metrics = Metrics()
    for number in range(50):
        metrics.answered(f"/secret/{number}", 404, 0.01)
    metrics.answered("/v1/models", 200, 0.01)
    metrics.round(100, 100)
    shown = values(metrics)
    assert b"secret" not in metrics.render()
    assert shown["requests_total", ("other", "404")] == 50
    assert {labels[0] for name, labels in shown if name == "requests_total"} <= {*PATHS, "other"}
    assert len([name for name, _ in shown if name == "spec_decode_num_accepted_tokens_per_pos_total"]) == 64


def test_two_servers_in_a_process_share_nothing() -> None:
    first, second = Metrics(), Metrics()
    first.round(4, 2)
    assert value(second, "spec_decode_num_drafts_total") == 0
    assert not [family.name for family in REGISTRY.collect() if family.name.startswith("draftloop")]
