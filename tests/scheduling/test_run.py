"""The scheduled run: its output is kept, its log does not grow for ever, and a signal reaches the work once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mortal import HANGS

from draftloop.errors import StoreError
from draftloop.scheduling.run import _Receiver, open_rotated, run_logged, shifts


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def logs(log: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in sorted(log.parent.glob("schedule.log*"))}


def write(log: Path, text: str, **limits: int) -> None:
    descriptor = open_rotated(log, **limits)
    os.write(descriptor, text.encode())
    os.close(descriptor)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "data" / "runs" / "schedule.log"


def test_both_outputs_lie_between_a_header_and_a_footer(log: Path) -> None:
    command = python("import sys; print('out', flush=True); print('err', file=sys.stderr); sys.exit(10)")
    assert run_logged(command, log) == 10
    header, *output, footer = log.read_text().splitlines()
    assert output == ["out", "err"]
    assert header.startswith("=== 2")
    assert f"process {os.getpid()}: {sys.executable} -c 'import sys" in header
    assert ": exit 10 after " in footer


def test_a_crash_of_the_interpreter_is_in_the_log_and_in_the_exit_code(log: Path) -> None:
    crash = [sys.executable, "-X", "faulthandler", "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"]
    assert run_logged(crash, log) == 128 + signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in log.read_text()
    assert "killed by SIGSEGV after " in log.read_text()


def test_the_child_reads_nothing_and_has_a_process_group_of_its_own(log: Path) -> None:
    """Ctrl-C at a terminal goes to the whole group: once by the terminal and once passed on would be one too many."""
    run_logged(python("import os, sys; print(repr(sys.stdin.read()), os.getpgrp() == os.getpid())"), log)
    assert log.read_text().splitlines()[1] == "'' True"


WORK = """
import os, signal, sys
def stop(number, frame):
    print("stopping for", signal.Signals(number).name, flush=True)
    sys.exit(130)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, stop)
with open(sys.argv[1], "w") as ready:
    ready.write("ready")
signal.pause()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_reaches_the_child_which_may_finish(number: signal.Signals, log: Path, tmp_path: Path) -> None:
    work, ready = tmp_path / "work.py", tmp_path / "ready"
    work.write_text(WORK)
    os.mkfifo(ready)
    code = (
        "import sys; from pathlib import Path; from draftloop.scheduling.run import run_logged; "
        f"sys.exit(run_logged([sys.executable, {str(work)!r}, {str(ready)!r}], Path({str(log)!r})))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(python(code), env=environment) as runner:
        assert ready.read_text() == "ready"
        runner.send_signal(number)
        assert runner.wait(timeout=HANGS) == 130
    assert log.read_text().splitlines()[1:-1] == [f"stopping for {number.name}"]
    assert ": exit 130 after " in log.read_text()


def test_a_signal_before_there_is_a_child_is_not_lost() -> None:
    receiver = _Receiver()
    receiver.handle(signal.SIGTERM, None)
    with subprocess.Popen(python("import signal; signal.alarm(30); signal.pause()")) as child:
        receiver.take(child)
        assert receiver.wait() == -signal.SIGTERM


def test_the_handlers_of_before_are_put_back(log: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run_logged(python(""), log)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_small_log_is_added_to(log: Path) -> None:
    for text in ("one\n", "two\n"):
        write(log, text, limit=9)
    assert logs(log) == {"schedule.log": "one\ntwo\n"}


def test_a_log_at_its_limit_is_put_aside_and_the_oldest_is_given_up(log: Path) -> None:
    for number in range(1, 6):
        write(log, f"run {number}\n", limit=6, kept=3)
    assert logs(log) == {
        "schedule.log": "run 5\n",
        "schedule.log.1": "run 4\n",
        "schedule.log.2": "run 3\n",
        "schedule.log.3": "run 2\n",
    }


def test_the_logs_together_stay_below_a_size(log: Path) -> None:
    for _ in range(30):
        run_logged(python("print(400 * 'x')"), log, limit=1000, kept=2)
    assert len(logs(log)) == 3
    assert all(len(text) < 2000 for text in logs(log).values())


def test_logs_and_their_directory_are_private(log: Path) -> None:
    write(log, "one")
    log.chmod(0o644)  # as launchd or a person may leave it
    write(log, "two")
    write(log, "three", limit=1)
    assert len(logs(log)) == 2
    assert {file.stat().st_mode & 0o777 for file in log.parent.iterdir()} == {0o600}
    assert log.parent.stat().st_mode & 0o777 == 0o700


@given(there=st.sets(st.integers(1, 6)), kept=st.integers(1, 6))
def test_no_log_is_renamed_over_another_unless_all_numbers_are_taken(there: set[int], kept: int) -> None:
    files = {0: "log", **{n: f"old {n}" for n in there if n <= kept}}
    given_up = []
    for old, new in shifts(there, kept):
        if new in files:
            given_up.append(new)
        files[new] = files.pop(old)
    assert 0 not in files
    assert files[1] == "log"
    assert given_up == ([kept] if set(range(1, kept + 1)) <= there else [])


def test_two_runs_at_once_lose_no_line(log: Path) -> None:
    """Four processes that rotate at almost every line, and more numbers than there are lines."""
    code = (
        "import os, sys; from pathlib import Path; from draftloop.scheduling.run import open_rotated\n"
        "for number in range(15):\n"
        f"    descriptor = open_rotated(Path({str(log)!r}), 10, 100)\n"
        "    os.write(descriptor, f'{sys.argv[1]} {number}\\n'.encode())\n"
        "    os.close(descriptor)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    runs = [subprocess.Popen([*python(code), name], env=environment) for name in "abcd"]
    assert [run.wait(timeout=HANGS) for run in runs] == [0, 0, 0, 0]
    lines = "".join(logs(log).values()).splitlines()
    assert sorted(lines) == sorted(f"{name} {number}" for name in "abcd" for number in range(15))
    assert len(logs(log)) > 5


def test_who_still_writes_into_a_log_that_is_put_aside_goes_on_there(log: Path) -> None:
    early = open_rotated(log, limit=1)
    os.write(early, b"early\n")
    write(log, "late\n", limit=1)
    os.write(early, b"still early\n")
    os.close(early)
    assert logs(log) == {"schedule.log": "late\n", "schedule.log.1": "early\nstill early\n"}


def test_a_log_that_cannot_be_written_is_said_and_nothing_is_started(log: Path, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(StoreError, match="could not be written"):
        run_logged(python(f"open({str(tmp_path / 'ran')!r}, 'w')"), log)
    assert not (tmp_path / "ran").exists()
