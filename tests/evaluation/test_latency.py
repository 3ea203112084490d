"""What decoding costs is kept under a key of all that it depends on, and of nothing else."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import pytest

from draftloop.evaluation.latency import QUICK, machine_fingerprint, measure_latency
from draftloop.models.pair import Pair
from draftloop.models.self_layers import SelfLayers

CUDA = {"device_name": "a card", "architecture": "sm_90", "total_memory": 80 << 30, "free_memory": 70 << 30}


def test_the_key_is_the_same_whatever_memory_is_free(small_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "device_info", lambda: CUDA)
    before = machine_fingerprint(small_pair, greedy=False)
    monkeypatch.setattr(mx, "device_info", lambda: {**CUDA, "free_memory": 1})
    assert machine_fingerprint(small_pair, greedy=False) == before


def test_another_machine_or_pair_has_another_key(small_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "device_info", lambda: CUDA)
    keys = [machine_fingerprint(small_pair, greedy=False)]
    keys.append(
        machine_fingerprint(replace(small_pair, identity=replace(small_pair.identity, draft="d" * 64)), greedy=False)
    )
    keys.append(machine_fingerprint(small_pair, greedy=True))
    monkeypatch.setattr(mx, "device_info", lambda: {**CUDA, "device_name": "another card"})
    keys.append(machine_fingerprint(small_pair, greedy=False))
    assert len(set(keys)) == 4


def test_whoever_waits_for_the_costs_is_told_from_the_beginning_to_the_end_how_far_it_is(small_pair: Pair) -> None:
    told: list[tuple[int, int]] = []
    measure_latency(small_pair, 3, QUICK, lambda *at: told.append(at))
    of = QUICK.blocks * (QUICK.warm_up + QUICK.repeats) * (2 + 3)  # plain steps, draft steps, and rounds of 1, 2 and 3
    assert told == [(done, of) for done in range(of + 1)]


def test_the_adapter_of_a_self_draft_is_felt_whatever_type_its_weights_have(small_pair: Pair) -> None:
    layers = SelfLayers(1, is_settled=True, why="a test")
    keys = {
        (own, adapter): machine_fingerprint(replace(small_pair, self_layers=own, adapter=adapter), greedy=True)
        for own in (None, layers)
        for adapter in (None, "v0001", "v0002")
    }
    assert keys[None, None] == keys[None, "v0001"]  # which is merged into weights of its own
    assert keys[layers, None] != keys[layers, "v0001"] == keys[layers, "v0002"]
