"""A kill while an adapter is saved or promoted: the state is the old one or the new one, and the champion loads."""

from __future__ import annotations

import json
import random
import subprocess
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from builders import NO_SYNC, OPERATIONS, CountingFiles, failing_files, write_adapter
from fault_table import Row
from mortal import BETWEEN, environment, kind, python
from tiny import tiny_llama

from draftloop.errors import StoreError
from draftloop.models import adapter as lora
from draftloop.models.adapter_format import AdapterConfig
from draftloop.registry.registry import Pointer, Registry

pytestmark = pytest.mark.row("kill while saving or promoting an adapter")

OLD = Pointer("v0001", None, 1)
NEW = Pointer("v0002", "v0001", 2)
PER_REGISTRY = 50  # kills in one registry, so that looking at all of its versions stays quick


def begin(root: Path) -> Registry:
    """A registry with a champion, v0001."""
    registry = Registry(root, NO_SYNC)
    registry.create(write_adapter, {})
    registry.promote("v0001")
    return registry


def create(root: Path, files: CountingFiles, value: float = 0.0) -> None:
    Registry(root, files).create(partial(write_adapter, value=value, files=files), {})


def check_whole(registry: Registry) -> None:
    """The champion and every other version that can be seen hold their hashes."""
    champion = registry.resolve("champion")
    assert champion is not None
    registry.verify(champion)
    for name in registry.versions():
        registry.verify(registry.root / name)


def operations(root: Path) -> tuple[list[str], list[str]]:
    """What a create and a promote do."""
    begin(root)
    creating, promoting = CountingFiles(), CountingFiles()
    create(root, creating)
    Registry(root, promoting).promote("v0002")
    return creating.names, promoting.names


@pytest.mark.parametrize("for_good", [False, True])
def test_a_create_that_fails_at_any_step_leaves_no_version_or_a_whole_one(
    tmp_path: Path, for_good: bool, row: Row
) -> None:
    names, _ = operations(tmp_path / "counted")
    assert set(names) == OPERATIONS - {"truncate", "remove"}
    for step in range(1, len(names) + 1):
        registry = begin(tmp_path / str(step))
        with pytest.raises(StoreError, match="No space left"):
            create(registry.root, failing_files(step, for_good))
        renamed = step > len(names) - 2  # only the sync of the parent directory is left
        assert registry.versions() == (["v0001", "v0002"] if renamed else ["v0001"])
        assert registry.pointer() == OLD
        check_whole(registry)
        assert registry.create(write_adapter, {}).name == ("v0003" if renamed else "v0002")
        assert not list(registry.root.glob(".tmp-*"))
    row.did(len(names), "failures of a single operation")


@pytest.mark.parametrize("for_good", [False, True])
def test_a_promotion_that_fails_at_any_step_leaves_the_old_champion_or_the_new_one(
    tmp_path: Path, for_good: bool, row: Row
) -> None:
    _, names = operations(tmp_path / "counted")
    assert len(names) > 8
    for step in range(1, len(names) + 1):
        registry = begin(tmp_path / str(step))
        registry.create(lambda path: write_adapter(path, 1.0), {})
        with pytest.raises(StoreError, match="No space left"):
            Registry(registry.root, failing_files(step, for_good)).promote("v0002")
        assert registry.pointer() == (NEW if step > len(names) - 2 else OLD)
        check_whole(registry)
        assert registry.promote("v0002") == NEW
    row.did(len(names), "failures of a single operation")


PUBLISHERS = """
import json, os, select, shutil, signal, sys, time
from pathlib import Path
from draftloop.registry.registry import Registry
from draftloop.store.atomic import write_new
from mortal import BETWEEN, Board, MortalFiles

root, adapter, kills = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
board = Board(root.with_suffix(".board"))

def publish(pipe, only, die_at, share):
    files = MortalFiles(board, die_at, share, only)

    def write(directory):
        for name in ("adapters.safetensors", "adapter_config.json"):
            if name.endswith(".json"):
                write_new(directory / name, (adapter / name).read_bytes(), files)
            else:
                files.produce(directory / name, lambda path: shutil.copyfile(adapter / name, path))

    registry = Registry(root, files)
    while True:
        name = registry.create(write, {}).name
        os.write(pipe, f"created {name}\\n".encode())
        os.write(pipe, f"promoted {registry.promote(name).sequence}\\n".encode())

for only, die_at, share in kills:
    board.text = BETWEEN
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        publish(writer, only, die_at, share)
    os.close(writer)
    said = b""
    end = time.monotonic() + (10.0 if only else 0.03 * share)
    while said.count(b"promoted") < 6 and select.select([reader], [], [], max(0.0, end - time.monotonic()))[0]:
        found = os.read(reader, 4096)
        said += found
        if not found:
            break
    os.kill(child, signal.SIGKILL)
    with os.fdopen(reader, "rb") as rest:
        said = [line.split() for line in (said + rest.read()).decode().splitlines()]
    os.waitpid(child, 0)
    print(json.dumps({"struck": board.text, "said": said}), flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def draft() -> Any:
    return tiny_llama(seed=2)


@pytest.fixture(scope="module")
def adapter(draft: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real adapter of the draft."""
    directory = tmp_path_factory.mktemp("adapter")
    lora.attach_fresh(draft, AdapterConfig(rank=2, scale=2.0), seed=0)
    lora.save_adapter(draft, directory)
    return directory


def check_after(registry: Registry, kill: dict[str, Any], before: Pointer, draft: Any) -> None:
    """The pointer is the last acknowledged one or the next; what was acknowledged is there; the champion loads."""
    created = [name for what, name in kill["said"] if what == "created"]
    acknowledged = max([int(number) for what, number in kill["said"] if what == "promoted"], default=before.sequence)
    now = registry.pointer()
    assert now.sequence in (acknowledged, acknowledged + 1)
    assert set(created) <= set(registry.versions())
    champion = registry.resolve("champion")
    if champion is not None:
        registry.verify(champion)
        lora.attach_directory(draft, champion)
    assert (champion is None) == (now.sequence == 0)
    if now.sequence > before.sequence:
        assert now.champion in registry.versions()[-2:]


Kill = tuple[str | None, int, float]
"""How manieth call of which operation, with which share of its bytes written; None: after that share of 30 ms."""


def planned(names: list[str], row: Row) -> list[Kill]:
    """Kills at random times, and at every operation of a create and a promote: at each ten times for the table."""
    choose, seen = random.Random(3), Counter[str]()
    places = []
    for name in names:
        seen[name] += 1
        places.append((name, seen[name]))
    places += [("remove", 1)] * 2  # it comes only where the kill before left something behind
    chosen = places * 10 if row.full else choose.sample(places, 12)
    kills: list[Kill] = [(name, at, choose.random()) for name, at in chosen]
    kills += [(None, 0, choose.random()) for _ in range(row.count(12, 500))]
    choose.shuffle(kills)
    return kills


def test_publishers_killed_at_any_moment_leave_a_champion_that_loads(
    tmp_path: Path, row: Row, draft: Any, adapter: Path
) -> None:
    creating, promoting = operations(tmp_path / "counted")
    kills = planned([*creating, *promoting], row)
    struck: Counter[str] = Counter()
    for first in range(0, len(kills), PER_REGISTRY):
        registry = Registry(tmp_path / str(first))
        command = python("-c", PUBLISHERS, registry.root, adapter, json.dumps(kills[first : first + PER_REGISTRY]))
        with subprocess.Popen(
            command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as driver:
            assert driver.stdin is not None
            assert driver.stdout is not None
            before = registry.pointer()
            for line in driver.stdout:
                kill = json.loads(line)
                struck[kill["struck"]] += 1
                check_after(registry, kill, before, draft)
                before = registry.pointer()
                driver.stdin.write("\n")
                driver.stdin.flush()
        assert driver.returncode == 0
        for name in registry.versions():
            registry.verify(registry.root / name)
        registry.create(write_adapter, {})
        assert not list(registry.root.glob(".tmp-*"))
    assert struck.total() == len(kills)
    row.did(len(kills), "kills")
    for place, times in struck.items():
        row.struck[kind(place)] += times
    if row.full:
        places = {f"{name} {at}" for name, at, _ in kills if name}
        assert min(struck[place] for place in [BETWEEN, *places]) >= 10, struck
        row.notes.append(f"each of the {len(places)} operations of a create and a promotion at least ten times")
