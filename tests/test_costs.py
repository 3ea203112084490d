"""What decoding costs is kept under a key of all that it depends on, and of nothing else."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import pytest

from draftloop.costs import fingerprint
from draftloop.pair import Pair

CUDA = {"device_name": "a card", "architecture": "sm_90", "total_memory": 80 << 30, "free_memory": 70 << 30}


def test_the_key_is_the_same_whatever_memory_is_free(small_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "device_info", lambda: CUDA)
    before = fingerprint(small_pair)
    monkeypatch.setattr(mx, "device_info", lambda: {**CUDA, "free_memory": 1})
    assert fingerprint(small_pair) == before


def test_another_machine_or_pair_has_another_key(small_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "device_info", lambda: CUDA)
    keys = [fingerprint(small_pair)]
    keys.append(fingerprint(replace(small_pair, identity=replace(small_pair.identity, draft="d" * 64))))
    monkeypatch.setattr(mx, "device_info", lambda: {**CUDA, "device_name": "another card"})
    keys.append(fingerprint(small_pair))
    assert len(set(keys)) == 3
