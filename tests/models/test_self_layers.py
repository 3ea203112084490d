"""A number of layers is settled once for a target, and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from draftloop.errors import StoreError
from draftloop.models.self_layers import FILE, LayersTrial, SelfLayers, SelfLayersFile
from draftloop.store.lock import Lock

START = SelfLayers(3, is_settled=False, why="an eighth")
SETTLED = SelfLayers(5, is_settled=True, why="it pays", trials=(LayersTrial(5, 0.001, 0.6, 3, 1.2),))


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    file = SelfLayersFile(tmp_path)
    assert file.of("a") is None
    file.keep("a", START)
    file.keep("b", SETTLED)
    assert SelfLayersFile(tmp_path).of("a") == START
    assert SelfLayersFile(tmp_path).of("b") == SETTLED


def test_a_settled_number_stays(tmp_path: Path) -> None:
    file = SelfLayersFile(tmp_path)
    file.keep("a", START)
    file.keep("a", SETTLED)
    file.keep("a", START)
    assert file.of("a") == SETTLED


def test_a_number_that_another_process_settles_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, other, enter = SelfLayersFile(tmp_path), SelfLayersFile(tmp_path), Lock.__enter__

    def late(lock: Lock) -> Any:
        monkeypatch.setattr(Lock, "__enter__", enter)
        other.keep("a", SETTLED)
        return enter(lock)

    monkeypatch.setattr(Lock, "__enter__", late)
    file.keep("a", START)
    assert file.of("a") == SETTLED


def test_reading_makes_nothing(tmp_path: Path) -> None:
    SelfLayersFile(tmp_path / "none").of("a")
    assert not (tmp_path / "none").exists()


def test_damage_is_named(tmp_path: Path) -> None:
    file = SelfLayersFile(tmp_path)
    file.keep("a", SETTLED)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes().replace(b"5", b"6", 1))
    with pytest.raises(StoreError, match=r"is damaged.*chosen anew"):
        file.of("a")
