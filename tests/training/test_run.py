from __future__ import annotations

import subprocess
from pathlib import Path

import mlx.core as mx
import pytest
from builders import CountingFiles, failing_files

from draftloop.config import Config
from draftloop.errors import RunError, StoreError
from draftloop.training.run import RunDirectory, environment, git_commit


def started(runs: Path, config: Config | None = None) -> RunDirectory:
    run = RunDirectory.create(runs)
    run.describe({"run": run.id, "config": (config or Config()).model_dump(mode="json")}, {"failures": ["a"]})
    run.checkpoints.save({"a": mx.array(1.0)}, {"step": 1})
    return run


def test_runs_are_numbered_and_private(tmp_path):
    first, second = RunDirectory.create(tmp_path / "runs"), RunDirectory.create(tmp_path / "runs")
    assert (first.id, second.id) == ("r0001", "r0002")
    assert oct(first.path.stat().st_mode & 0o777) == "0o700"
    second.path.rmdir()
    assert RunDirectory.create(tmp_path / "runs").id == "r0002"


def test_what_was_described_comes_back(tmp_path):
    config = Config.model_validate({"training": {"learning_rate": 1e-5, "seed": 7, "max_minutes": 1.5}})
    run = started(tmp_path, config)
    found = RunDirectory.find(tmp_path, run.id)
    assert found.config() == config
    assert found.mixture() == {"failures": ["a"]}
    assert found.description()["run"] == "r0001"
    assert oct((run.path / "run.yaml").stat().st_mode & 0o777) == "0o600"


def test_the_start_is_kept_for_whoever_resumes_and_a_damaged_one_is_none(tmp_path):
    run = started(tmp_path)
    assert run.start() is None
    run.note_start({"number": 1.5})
    assert RunDirectory.find(tmp_path, run.id).start() == {"number": 1.5}
    for damaged in (b"?", b"[1]", b'{"number": "many"}', b'{"number": null}'):
        (run.path / "start.json").write_bytes(damaged)
        assert run.start() is None


def test_resumptions_are_counted_from_the_step_they_begin_at(tmp_path):
    run = started(tmp_path)
    assert [run.note_resumption() for _ in range(3)] == [1, 2, 3]
    run.checkpoints.save({"a": mx.array(2.0)}, {"step": 1})
    assert run.note_resumption() == 4
    run.checkpoints.save({"a": mx.array(2.0)}, {"step": 2})
    assert [run.note_resumption() for _ in range(2)] == [1, 2]
    (run.path / "resumptions.json").write_bytes(b"?")
    assert run.note_resumption() == 1


def test_forgetting_the_resumptions_goes_through_the_seam(tmp_path):
    run = started(tmp_path)
    run.note_resumption()
    with pytest.raises(StoreError):
        RunDirectory(run.path, failing_files(1)).forget_resumptions()
    run.forget_resumptions()
    assert run.note_resumption() == 1


def test_latest_is_the_newest_run_that_can_be_resumed(tmp_path):
    first, second, third = (started(tmp_path) for _ in range(3))
    RunDirectory.create(tmp_path)  # killed before its first checkpoint
    third.finish({"version": "v0001"})
    assert RunDirectory.find(tmp_path, "latest").id == second.id
    assert RunDirectory.find(tmp_path, "r0001").id == first.id


def test_a_run_that_cannot_be_resumed_is_refused_with_what_can_be(tmp_path):
    with pytest.raises(RunError, match=r"no run 'latest' to resume in .*; unfinished ones: none"):
        RunDirectory.find(tmp_path, "latest")
    run = started(tmp_path)
    with pytest.raises(RunError, match=r"no run '\.\./r0001' .*; unfinished ones: r0001"):
        RunDirectory.find(tmp_path, "../r0001")
    empty = RunDirectory.create(tmp_path)
    with pytest.raises(RunError, match="r0002 left no checkpoint"):
        RunDirectory.find(tmp_path, empty.id)
    run.finish({})
    assert not run.checkpoints.exist()
    with pytest.raises(RunError, match="r0001 is finished"):
        RunDirectory.find(tmp_path, "r0001")


def test_what_a_kill_left_of_a_finished_run_is_cleared_when_the_next_one_begins(tmp_path):
    def with_texts(runs: Path) -> RunDirectory:
        run = started(runs)
        for stage in range(3):
            run.keep_samples(stage, [])
        return run

    counted = CountingFiles()
    whole = with_texts(tmp_path / "whole")
    RunDirectory(whole.path, counted).finish({})
    assert counted.names.count("remove") == 5  # the checkpoints, the progress and each stage's texts, through the seam
    for at in range(1, len(counted.names) + 1):
        run = with_texts(tmp_path / str(at))
        with pytest.raises(StoreError):
            RunDirectory(run.path, failing_files(at, for_good=True)).finish({})
        finished = run.is_finished()
        RunDirectory.create(run.path.parent)
        left = {path.name for path in run.path.iterdir() if path.name.startswith(("checkpoints", "texts-"))}
        assert left == (set() if finished else {"checkpoints", "texts-0.json", "texts-1.json", "texts-2.json"})


@pytest.mark.parametrize(
    ("name", "content", "read"),
    [
        ("run.yaml", b"config: {training: {epochs: none}}", RunDirectory.config),
        ("run.yaml", b"seed: 1", RunDirectory.config),
        ("run.yaml", b"\xff", RunDirectory.description),
        ("material.json", b"{", RunDirectory.mixture),
    ],
)
def test_damaged_descriptions_are_refused_by_name(tmp_path, name, content, read):
    run = started(tmp_path)
    (run.path / name).write_bytes(content)
    with pytest.raises(RunError, match=rf"r0001 cannot be resumed.*{name}"):
        read(run)


def test_the_environment_names_the_versions():
    found = environment()
    assert found["versions"]["mlx"]
    assert found["versions"]["python"].startswith("3.")
    assert set(found) == {"versions", "platform", "git_commit"}


def git(directory: Path, *arguments: str) -> None:
    command = ["git", "-C", str(directory), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    subprocess.run(command, check=True, capture_output=True)


def test_the_commit_is_told_where_the_code_is_under_git_and_nowhere_else(tmp_path):
    assert git_commit(tmp_path) is None
    (tmp_path / "__init__.py").write_text("")
    git(tmp_path, "init")
    assert git_commit(tmp_path) is None  # a checkout around it, but the code is not part of it
    git(tmp_path, "add", "__init__.py")
    git(tmp_path, "commit", "-m", "x")
    assert len(git_commit(tmp_path) or "") == 40
