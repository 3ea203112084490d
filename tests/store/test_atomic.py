"""What is published appears whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import CountingFiles, RecordedSyncs, failing_files

from draftloop.errors import StoreError
from draftloop.store.atomic import NewFile, publish_directory, remove_leftovers, temporary_path, write_atomically


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def fill(directory: Path) -> Path:
    (directory / "inner").mkdir(parents=True)
    (directory / "a").write_bytes(b"a")
    (directory / "inner" / "b").write_bytes(b"b")
    return directory


def test_a_written_file_is_whole_private_and_alone(tmp_path: Path) -> None:
    path = tmp_path / "pointer.json"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert names(tmp_path) == {"pointer.json"}


def test_the_bytes_are_on_disk_before_the_name_is_and_the_name_before_it_returns(tmp_path: Path) -> None:
    files = CountingFiles()
    write_atomically(tmp_path / "f", b"data", files)
    assert files.names == ["open", "write", "sync", "rename", "sync_directory", "sync"]


@pytest.mark.parametrize("for_good", [False, True])
def test_a_failure_at_any_step_leaves_the_old_file_or_the_new_one(tmp_path: Path, for_good: bool) -> None:
    path = tmp_path / "f"
    for step in range(1, 7):
        path.write_bytes(b"old")
        with pytest.raises(OSError, match="No space"):
            write_atomically(path, b"new", failing_files(step, for_good))
        renamed = step > 4
        assert path.read_bytes() == (b"new" if renamed else b"old")
        if not for_good:
            assert names(tmp_path) == {"f"}


def test_a_large_file_is_written_in_pieces_and_takes_its_place_whole(tmp_path: Path) -> None:
    path, files = tmp_path / "f", CountingFiles()
    path.write_bytes(b"old")
    pieces = [bytes([number]) * 300_000 for number in range(10)]
    with NewFile(tmp_path, files) as new:
        for piece in pieces:
            new.write(piece)
        new.settle()
        assert path.read_bytes() == b"old"
        new.publish(path)
    assert path.read_bytes() == b"".join(pieces)
    assert new.size == 3_000_000
    assert path.stat().st_mode & 0o777 == 0o600
    assert names(tmp_path) == {"f"}
    assert files.names == ["open", "write", "write", "write", "sync", "rename", "sync_directory", "sync"]


def test_a_large_file_that_is_not_published_leaves_nothing(tmp_path: Path) -> None:
    with NewFile(tmp_path) as new:
        new.write(b"data")
    assert names(tmp_path) == set()


@pytest.mark.parametrize("step", range(1, 7))
def test_a_large_file_that_fails_at_any_step_leaves_the_old_one_or_the_new_one(tmp_path: Path, step: int) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="No space"), NewFile(tmp_path, failing_files(step)) as new:  # noqa: PT012
        new.write(b"new")
        new.settle()
        new.publish(path)
    assert path.read_bytes() == (b"new" if step > 4 else b"old")
    assert names(tmp_path) == {"f"}


def test_a_directory_is_published_whole_and_private(tmp_path: Path) -> None:
    publish_directory(fill(tmp_path / "t"), tmp_path / "v")
    assert names(tmp_path) == {"v"}
    assert (tmp_path / "v" / "inner" / "b").read_bytes() == b"b"
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "v").rglob("*")}
    assert modes == {"a": 0o600, "inner": 0o700, "b": 0o600}


def test_every_file_and_directory_is_synced_before_the_rename(tmp_path: Path) -> None:
    files = CountingFiles()
    publish_directory(fill(tmp_path / "t"), tmp_path / "v", files)
    assert files.names == ["make_private", "open", "sync"] * 4 + ["rename", "sync_directory", "sync"]


@pytest.mark.parametrize("kind", ["directory", "empty directory", "file", "dangling link"])
def test_nothing_is_published_over_what_exists(tmp_path: Path, kind: str) -> None:
    final = tmp_path / "v"
    if kind == "dangling link":
        final.symlink_to(tmp_path / "nowhere")
    elif kind == "file":
        final.touch()
    else:
        final.mkdir()
        if kind == "directory":
            (final / "kept").touch()
    with pytest.raises(StoreError, match="exists already"):
        publish_directory(fill(tmp_path / "t"), final)
    assert (tmp_path / "t" / "a").exists()


def test_what_must_outlive_a_power_loss_is_synced_in_full_everywhere(tmp_path: Path) -> None:
    for full in (True, False):
        files = RecordedSyncs()
        write_atomically(tmp_path / "f", b"data", files, full=full)
        publish_directory(fill(tmp_path / f"t{full}"), tmp_path / f"v{full}", files, full=full)
        assert files.full == [full] * 7


def test_leftovers_go_and_nothing_else_does(tmp_path: Path) -> None:
    fill(temporary_path(tmp_path))
    temporary_path(tmp_path).touch()
    (tmp_path / "kept").touch()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == {"kept"}
