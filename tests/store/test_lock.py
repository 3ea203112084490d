"""One holder at a time, across threads and processes; a dead one blocks nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from draftloop.errors import LockedError, StoreError
from draftloop.store.lock import Lock

HOLD = """
import sys
from pathlib import Path
from draftloop.store.lock import Lock
with Lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(path: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock until its stdin closes."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_told_who_holds_it_and_gets_it_as_soon_as_the_holder_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with hold(path) as holder:
        with pytest.raises(LockedError, match=rf"held by process {holder.pid}\b.*waited 0 s"), Lock(path, timeout=0):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with Lock(path, timeout=0):
            assert path.read_text().strip() == f"process {os.getpid()}"


def test_two_locks_in_one_process_exclude_each_other(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with Lock(path), pytest.raises(LockedError), Lock(path, timeout=0):
        pass
    with Lock(path, timeout=0):
        pass


def test_an_error_inside_frees_it(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "lock", timeout=0)
    with pytest.raises(ZeroDivisionError), lock:
        raise ZeroDivisionError
    with Lock(tmp_path / "lock", timeout=0):
        pass


def test_the_lock_file_is_private_and_its_directory_is_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lock"
    with Lock(path):
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_place_where_no_lock_can_be_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="could not be written"), Lock(tmp_path / "file" / "lock"):
        pass
