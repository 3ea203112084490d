"""Faults of the registry: at every instant the state is the old one or the new one, and the champion loads."""

from __future__ import annotations

import random
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from builders import NO_SYNC, CountingFiles, failing_files, write_adapter
from safetensors import SafetensorError

from draftloop.errors import AdapterError, StoreError
from draftloop.manifest import verify
from draftloop.registry import Pointer, Registry

OLD = Pointer("v0001", None, 1)
NEW = Pointer("v0002", "v0001", 2)


def begin(root: Path) -> Registry:
    """A registry with a champion, v0001."""
    registry = Registry(root, NO_SYNC)
    registry.create(write_adapter, {})
    registry.promote("v0001")
    return registry


def check_whole(registry: Registry) -> None:
    """The champion and every other version that can be seen hold their hashes."""
    champion = registry.resolve("champion")
    assert champion is not None
    registry.verify(champion)
    for name in registry.versions():
        registry.verify(registry.root / name)


def count_steps(root: Path) -> tuple[int, int]:
    """How many operations a create and a promote take."""
    begin(root)
    creating, promoting = CountingFiles(), CountingFiles()
    Registry(root, creating).create(write_adapter, {})
    Registry(root, promoting).promote("v0002")
    return len(creating.names), len(promoting.names)


@pytest.mark.parametrize("for_good", [False, True])
def test_a_create_that_fails_at_any_step_leaves_no_version_or_a_whole_one(tmp_path: Path, for_good: bool) -> None:
    steps, _ = count_steps(tmp_path / "counted")
    assert steps > 15
    for step in range(1, steps + 1):
        registry = begin(tmp_path / str(step))
        with pytest.raises(StoreError, match="No space left"):
            Registry(registry.root, failing_files(step, for_good)).create(write_adapter, {})
        renamed = step > steps - 2  # only the sync of the parent directory is left
        assert registry.versions() == (["v0001", "v0002"] if renamed else ["v0001"])
        assert registry.pointer() == OLD
        check_whole(registry)
        assert registry.create(write_adapter, {}).name == ("v0003" if renamed else "v0002")
        assert not list(registry.root.glob(".tmp-*"))


@pytest.mark.parametrize("for_good", [False, True])
def test_a_promotion_that_fails_at_any_step_leaves_the_old_champion_or_the_new_one(
    tmp_path: Path, for_good: bool
) -> None:
    _, steps = count_steps(tmp_path / "counted")
    assert steps > 8
    for step in range(1, steps + 1):
        registry = begin(tmp_path / str(step))
        registry.create(lambda path: write_adapter(path, 1.0), {})
        with pytest.raises(StoreError, match="No space left"):
            Registry(registry.root, failing_files(step, for_good)).promote("v0002")
        assert registry.pointer() == (NEW if step > steps - 2 else OLD)
        check_whole(registry)
        assert registry.promote("v0002") == NEW


KILLED = """
import os, signal, sys
from pathlib import Path
from builders import CountingFiles, write_adapter
from draftloop.registry import Registry

root, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
for step in range(first, last):
    child = os.fork()
    if not child:
        def die(number, name):
            if number == step:
                os.kill(os.getpid(), signal.SIGKILL)
        registry = Registry(root / str(step), CountingFiles(die))
        registry.promote(registry.create(write_adapter, {}).name)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"step {step} did not come"
"""


def test_a_process_killed_at_any_step_of_create_and_promote_leaves_the_old_state_or_the_new_one(
    tmp_path: Path,
) -> None:
    steps = sum(count_steps(tmp_path / "counted"))
    registries = {step: begin(tmp_path / str(step)) for step in range(1, steps + 1)}
    command = [sys.executable, "-c", KILLED, str(tmp_path), "1", str(steps + 1)]
    subprocess.run(command, env={"PYTHONPATH": ":".join(sys.path)}, check=True)
    for registry in registries.values():
        assert registry.pointer() in (OLD, NEW)
        check_whole(registry)
        registry.create(write_adapter, {})
        assert not list(registry.root.glob(".tmp-*"))


def test_a_disk_that_fills_at_any_size_leaves_the_earlier_state(tmp_path: Path) -> None:
    registry = begin(tmp_path / "adapters")
    before = {path: path.read_bytes() for path in registry.root.rglob("*") if path.is_file()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in range(30, 400, 30):  # bytes; the largest file, the manifest, takes more
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            with pytest.raises((StoreError, SafetensorError)):  # the second one is how this writer says it
                registry.create(write_adapter, {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert {path: path.read_bytes() for path in registry.root.rglob("*") if path.is_file()} == before
    assert registry.create(write_adapter, {}).name == "v0002"


def mutated(data: bytes, choose: random.Random) -> bytes:
    """`data` cut somewhere, or with a few bytes changed, half of the time in the header."""
    if choose.random() < 0.3:
        return data[: choose.randrange(len(data))]
    changed = bytearray(data)
    for _ in range(choose.randint(1, 4)):
        changed[choose.randrange(choose.choice([180, len(data)]))] ^= choose.randrange(1, 256)
    return bytes(changed)


def test_mutated_weights_never_pass_a_manifest_and_never_crash_without_one(tmp_path: Path) -> None:
    registry = begin(tmp_path / "adapters")
    version, foreign = registry.root / "v0001", tmp_path / "foreign"
    foreign.mkdir()
    write_adapter(foreign)
    good = (version / "adapters.safetensors").read_bytes()
    choose, refusals = random.Random(3), []
    for _ in range(150):
        bad = mutated(good, choose)
        for directory in (version, foreign):
            (directory / "adapters.safetensors").write_bytes(bad)
        if bad != good:
            with pytest.raises(AdapterError, match=r"adapters\.safetensors is damaged"):
                registry.verify(version)
        try:
            verify(foreign)
        except AdapterError as error:
            refusals.append(str(error))
    assert len(refusals) > 75  # cuts and broken headers; changed numbers cannot be seen without a hash
    assert all("adapters.safetensors" in refusal for refusal in refusals)


def test_mutated_manifests_never_pass_and_never_crash(tmp_path: Path) -> None:
    registry = begin(tmp_path / "adapters")
    manifest = registry.root / "v0001" / "manifest.json"
    good, choose = manifest.read_bytes(), random.Random(4)
    for _ in range(150):
        bad = mutated(good, choose)
        manifest.write_bytes(bad)
        if bad not in (good, good[:-1]):  # the last byte is only a newline
            with pytest.raises(AdapterError, match="manifest"):
                registry.verify(manifest.parent)
