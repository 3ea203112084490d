"""Whoever is at work is seen for as long as it lives, and a look refuses nobody the lock."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from draftloop.store.lock import Lock
from draftloop.store.presence import Note, Presence

AT_WORK = """
import sys
from pathlib import Path
from draftloop.store.presence import Presence
presence = Presence(Path(sys.argv[1]))
with presence.shown("retrain"):
    presence.doing("gate: v0001")
    print("shown", flush=True)
    sys.stdin.read()
"""


def test_it_is_seen_while_it_lives_and_no_longer_even_when_killed(tmp_path: Path) -> None:
    presence = Presence(tmp_path / "at-work")
    assert presence.look() is None
    command = [sys.executable, "-c", AT_WORK, str(presence.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "shown\n"
        found = presence.look()
        assert found is not None
        assert (found["process"], found["command"], found["doing"]) == (process.pid, "retrain", "gate: v0001")
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert presence.path.stat().st_size > 0  # it could not tidy up
    assert presence.look() is None


def test_it_is_seen_by_its_own_process_too_and_gone_afterwards(tmp_path: Path) -> None:
    presence = Presence(tmp_path / "at-work")
    presence.doing("nothing: nobody is at work")
    assert not presence.path.exists()
    with presence.shown("train"):
        found = Presence(presence.path).look()
        assert found is not None
        assert (found["process"], found["command"], found["doing"]) == (os.getpid(), "train", None)
        assert presence.path.stat().st_mode & 0o777 == 0o600
    assert presence.look() is None


def test_many_looks_at_once_refuse_the_lock_to_nobody(tmp_path: Path) -> None:
    presence, over = Presence(tmp_path / "at-work"), threading.Event()
    seen: list[bool] = []

    def look() -> None:
        while not over.is_set():
            seen.append(presence.look() is not None)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(50):
            with Lock(tmp_path / "lock", timeout=0), presence.shown("train"):
                found = presence.look()
                assert found is not None
                assert found["command"] == "train"
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert len(seen) > 4


def test_a_note_is_written_over_by_a_shorter_one_and_a_torn_one_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = Note(tmp_path / "note")
    assert note.read() is None
    note.write({"step": "x" * 100})
    note.write({"step": 1})
    assert note.read() == {"step": 1}
    monkeypatch.setattr("draftloop.store.presence._TRIES", 2)
    note.path.write_bytes(note.path.read_bytes()[:-110].replace(b"1", b"2"))
    assert note.read() is None


def test_where_nothing_can_be_written_there_is_no_error(tmp_path: Path) -> None:
    Note(tmp_path / "none" / "note").write({"step": 1})
    with Presence(tmp_path / "none" / "at-work").shown("train"):
        pass
