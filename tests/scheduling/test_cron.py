"""The user's crontab: only our block is touched, and what cannot be read is never written."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_ins import write_tool

from draftloop.errors import ScheduleError
from draftloop.scheduling.cron import PLACE, Cron, block_in, cron_block, with_block
from draftloop.scheduling.job import Daily

from .conftest import MakeJob

THEIRS = b"# mine\nMAILTO=ann\n\n5 4 * * * echo 50\\% \xe4\r\n"
BLOCK = b"# draftloop begin 0000abcd\n0 * * * * true\n# draftloop end 0000abcd\n"
texts = st.lists(st.binary(max_size=20)).map(b"\n".join).map(lambda text: text + b"\n" if text else text)


@given(before=texts, after=texts)
def test_putting_a_block_in_and_taking_it_out_again_gives_the_same_bytes(before: bytes, after: bytes) -> None:
    assert with_block(with_block(before, "0000abcd", BLOCK), "0000abcd", b"") == before
    between = before + BLOCK + after
    assert with_block(between, "0000abcd", BLOCK) == between
    assert block_in(between, "0000abcd") == BLOCK
    assert with_block(between, "0000abcd", b"") == before + after


def test_a_line_with_undecodable_bytes_is_read_into_what_can_be_printed(make_job: MakeJob, tools: Path) -> None:
    job = make_job(config_file=Path("/x/y.yaml"))
    (tools / "crontab").write_bytes(cron_block(job).encode().replace(b"/y", b"/\xe4"))
    command = Cron().read(Cron().installed(job.id)).parts["command"]
    assert "/x/\ufffd.yaml" in command


def test_a_last_line_without_a_newline_gets_one() -> None:
    assert with_block(b"* * * * * true", "0000abcd", BLOCK) == b"* * * * * true\n" + BLOCK


def test_the_block_of_another_data_directory_is_not_ours() -> None:
    other = BLOCK.replace(b"abcd", b"ffff")
    both = with_block(other, "0000abcd", BLOCK)
    assert both == other + BLOCK
    assert with_block(both, "0000ffff", b"") == BLOCK


@pytest.mark.parametrize(
    "text",
    [
        BLOCK + BLOCK,
        BLOCK[:30],
        BLOCK[27:],
        b"# draftloop end 0000abcd\n# draftloop begin 0000abcd\n",
    ],
    ids=["twice", "no end", "no begin", "turned around"],
)
def test_marks_that_someone_edited_are_reported_and_nothing_is_guessed(text: bytes) -> None:
    for block in (BLOCK, b""):
        with pytest.raises(ScheduleError, match=r"one of each was expected.*crontab -e"):
            with_block(text, "0000abcd", block)


def test_where_there_is_no_crontab_one_is_made_and_taken_away_again(make_job: MakeJob, tools: Path) -> None:
    job, cron = make_job(), Cron()
    assert cron.installed(job.id) == {}
    cron.install(job)
    assert (tools / "crontab").read_text() == cron_block(job)
    assert cron.installed(job.id) == cron.render(job) == {PLACE: cron_block(job)}
    cron.remove(job.id)
    assert not (tools / "crontab").exists()


def test_everything_else_in_it_is_kept_byte_for_byte(make_job: MakeJob, tools: Path) -> None:
    (tools / "crontab").write_bytes(THEIRS)
    job, other = make_job(), make_job(data_dir=Path("/elsewhere"))
    for one in (job, other, job):
        Cron().install(one)
    assert (tools / "crontab").read_bytes() == THEIRS + (cron_block(job) + cron_block(other)).encode()
    Cron().install(changed := make_job(when=Daily(3, 5)))
    assert (tools / "crontab").read_bytes() == THEIRS + (cron_block(changed) + cron_block(other)).encode()
    Cron().remove(job.id)
    Cron().remove(other.id)
    assert (tools / "crontab").read_bytes() == THEIRS


@pytest.mark.parametrize("said", ["You (ann) are not allowed to use this program (crontab)", "cannot open: I/O error"])
def test_a_crontab_that_cannot_be_read_is_never_written(said: str, make_job: MakeJob, tools: Path) -> None:
    script = f'#!/bin/sh\n[ "$1" = -l ] || touch "{tools}/written"\necho "{said}" >&2\nexit 1\n'
    write_tool(tools.parent / "bin", "crontab", script)
    for attempt in (lambda: Cron().install(make_job()), lambda: Cron().remove(make_job().id)):
        with pytest.raises(ScheduleError, match="cannot be read, so it is left as it is") as caught:
            attempt()
        assert said in str(caught.value)
    assert not (tools / "written").exists()


@pytest.mark.parametrize(
    "said",
    ["no crontab for ann", "crontab: no crontab for ann", "crontab: can't open 'ann': No such file or directory"],
)
def test_every_crons_way_of_saying_that_there_is_none_is_known(said: str, tools: Path) -> None:
    write_tool(tools.parent / "bin", "crontab", f'#!/bin/sh\necho "{said}" >&2\nexit 1\n')
    assert Cron().installed("0000abcd") == {}


def test_a_refusal_is_said_in_crontabs_own_words(make_job: MakeJob, tools: Path) -> None:
    script = '#!/bin/sh\n[ "$1" = -l ] && exit 0\necho "errors in crontab file, can\'t install." >&2\nexit 1\n'
    write_tool(tools.parent / "bin", "crontab", script)
    with pytest.raises(ScheduleError, match=r"the crontab is as it was: `crontab -` ended with 1: errors in crontab"):
        Cron().install(make_job())


def test_a_line_that_is_taken_but_not_shown_is_no_success(make_job: MakeJob, tools: Path) -> None:
    write_tool(tools.parent / "bin", "crontab", "#!/bin/sh\ncat > /dev/null\n")
    with pytest.raises(ScheduleError, match="took the new line but does not show it"):
        Cron().install(make_job())


def test_where_there_is_no_cron_it_is_said_how_to_get_one(make_job: MakeJob, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ScheduleError, match=r"no `crontab` was found on PATH \(.*\); install cron .*or choose --kind"):
        Cron().install(make_job())


def read_real() -> bytes | None:
    done = subprocess.run(["crontab", "-l"], capture_output=True, env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"})
    if done.returncode == 0:
        return done.stdout
    return b"" if b"no crontab for" in done.stderr else None


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("crontab") is None, reason="macOS asks the user first")
def test_the_real_crontab_takes_the_block_and_is_as_before_afterwards(make_job: MakeJob) -> None:
    before = read_real()
    if before is None:
        pytest.skip("this user may have no crontab")
    job = make_job(when=Daily(4, 44), environment={}, directory=Path("/x/a b%c'd\\e"), python=Path("/bin/true"))
    try:
        Cron().install(job)
        assert read_real() == before + cron_block(job).encode()
    finally:
        Cron().remove(job.id)
    assert read_real() == before
