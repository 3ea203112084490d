"""Names that would lead elsewhere: refused by an allow-list, and nothing outside the data directory is touched."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import orjson
import pytest
from builders import NO_SYNC, write_adapter
from fault_table import Row
from shop import config_of

from draftloop.config import Models
from draftloop.errors import AdapterError, DraftloopError, RunError, StoreError
from draftloop.registry.registry import Pointer, Registry
from draftloop.registry.verdicts import Verdicts
from draftloop.training.run import RunDirectory

pytestmark = pytest.mark.row("names and paths")

NAMES = (
    *("../outside", "../../outside", "v0001/../../../outside", "..", ".", "", "/", "//", "~", "~root", "$HOME"),
    *("%2e%2e/outside", "%2e%2e%2foutside", "..%2foutside", "..\\outside", "..\\..\\outside", "C:\\outside"),
    *("v0001\0", "\0", "v0001\n", "v0001 ", " v0001", "V0001", "v1", "v٠٠٠١", "ｖ0001", "v²²²²", "r²²²²", "r٣٣٣٣"),
    *("v0001/", "v0001/.", "./v0001", "x" * 300, "v" + "1" * 300, "y/" * 3000, "\ud800", "-rf", "champion/../x"),
)
PIECES = (
    "..",
    "/",
    "\\",
    "%2e",
    "\0",
    "v0001",
    "r0001",
    "outside",
    "~",
    " ",
    "\n",
    "²",
    "٣",
    "x" * 90,
    ".",
    "-",
    "\udcff",
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with a version and an unfinished run, and what lies beside it."""
    registry = Registry(tmp_path / "data" / "adapters", NO_SYNC)
    registry.create(write_adapter, {})
    for folder in ("outside", "data/outside", "data/adapters/outside"):
        (tmp_path / folder).mkdir()
        write_adapter(tmp_path / folder)
    run = RunDirectory.create(tmp_path / "data" / "runs", NO_SYNC)
    run.describe({"run": run.id}, {})
    run.checkpoints.save({"a": mx.array(1.0)}, {"step": 1})
    (tmp_path / "outside" / "checkpoints").mkdir()
    (tmp_path / "outside" / "checkpoints" / "latest.json").write_text("{}")
    return tmp_path / "data"


def everything(root: Path) -> dict[str, tuple[int, bytes]]:
    """Modes and contents of all there is, but for locks and who held them."""
    found = (path for path in root.rglob("*") if not path.name.endswith((".lock", ".at-work")))
    return {
        str(path.relative_to(root)): (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in found
    }


def attempts(data: Path) -> list[Callable[[str], object]]:
    """Every way by which a name is turned into a place that is written to, or believed."""
    registry = Registry(data / "adapters", NO_SYNC)
    return [
        registry.promote,
        registry.manifest,
        lambda name: RunDirectory.find(data / "runs", name, NO_SYNC),
    ]


def refusal(attempt: Callable[[str], object], name: str) -> str:
    with pytest.raises(DraftloopError) as caught:
        attempt(name)
    assert isinstance(caught.value, AdapterError | RunError | StoreError)
    return str(caught.value)


def hostile(choose: random.Random) -> str:
    return "".join(choose.choice(PIECES) for _ in range(choose.randint(1, 8)))


def test_only_names_of_versions_and_runs_are_taken_for_them(tmp_path: Path, data: Path, row: Row) -> None:
    choose, before = random.Random(8), everything(tmp_path)
    generated = [hostile(choose) for _ in range(row.count(100, 5000))]
    names = [*NAMES, *str(tmp_path / "outside").split("\0"), *(n for n in generated if n not in ("v0001", "r0001"))]
    for name in names:
        for attempt in attempts(data):
            refusal(attempt, name)
    assert everything(tmp_path) == before
    row.did(len(names), "names refused")


@pytest.mark.parametrize(
    "words",
    [
        ("adapters", "promote"),
        ("adapters", "show"),
        ("train", "--resume"),
        ("collect-data", "-p", "x", "--adapter"),
        ("generate", "x", "--adapter"),
        ("adapters", "export", "--to", "exported"),
    ],
    ids=" ".join,
)
def test_the_commands_refuse_them_in_one_line_and_touch_nothing(
    tmp_path: Path,
    data: Path,
    words: tuple[str, ...],
    command: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    row: Row,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = everything(tmp_path)
    for name in ("../nowhere", "%2e%2e/outside", "..\\outside", "v0001\n", "x" * 300, "v²²²²", "v0001\0"):
        if "--adapter" in words and name == "v0001\0":
            continue  # no shell can say it
        said = command("--data-dir", data, *words, name)
        assert (said.code, said.out, said.err.count("\n")) == (2, "", 1), (name, said)
        row.did(1, "commands refused")
    assert everything(tmp_path) == before


def test_symbolic_links_among_versions_and_runs_are_followed_nowhere(tmp_path: Path, data: Path, row: Row) -> None:
    (data / "adapters" / "v0002").symlink_to(tmp_path / "outside")
    (data / "runs" / "r0002").symlink_to(tmp_path / "outside")
    before = everything(tmp_path / "outside")
    registry = Registry(data / "adapters", NO_SYNC)
    for attempt in (registry.promote, registry.resolve, registry.manifest):
        assert "symbolic link" in refusal(attempt, "v0002")
    assert "no run 'r0002'" in refusal(lambda name: RunDirectory.find(data / "runs", name), "r0002")
    assert registry.create(write_adapter, {}).name == "v0003"
    assert RunDirectory.create(data / "runs", NO_SYNC).id == "r0003"
    assert everything(tmp_path / "outside") == before
    row.did(2, "symbolic links")


@pytest.mark.parametrize("name", ["../../outside", "/etc", "c0001/../c0001", "", "c²", None, ["c0001"]])
def test_a_pointer_that_names_another_place_is_damage(tmp_path: Path, data: Path, name: object, row: Row) -> None:
    latest = data / "runs" / "r0001" / "checkpoints" / "latest.json"
    latest.write_bytes(orjson.dumps({"checkpoint": name}))
    with pytest.raises(RunError, match=r"is damaged \(latest\.json names"):
        RunDirectory.find(data / "runs", "r0001").checkpoints.load()
    if name:
        (data / "adapters" / "pointer.json").write_bytes(
            orjson.dumps({"champion": name, "previous": None, "sequence": 1})
        )
        with pytest.raises((AdapterError, StoreError)):
            Registry(data / "adapters").resolve("champion")
    row.did(1, "pointers that name another place")


def test_a_run_or_checkpoint_of_a_strange_name_disturbs_nobody(data: Path) -> None:
    for name in ("r²", "rx", "r٣٣٣٣", "r1"):
        (data / "runs" / name).mkdir()
    (data / "runs" / "r0001" / "checkpoints" / "c²").mkdir()
    assert RunDirectory.create(data / "runs", NO_SYNC).id == "r0002"
    run = RunDirectory.find(data / "runs", "latest", NO_SYNC)
    assert run.checkpoints.save({"a": mx.array(2.0)}, {"step": 2}).name == "c0002"


def test_a_champion_elsewhere_is_nobodys_champion(tmp_path: Path, data: Path, small_models: Models) -> None:
    """An adapter's directory may be used where it lies, and only a version can be promoted or judged."""
    registry, outside = Registry(data / "adapters", NO_SYNC), str(tmp_path / "outside")
    assert registry.resolve(outside) == tmp_path / "outside"
    refusal(registry.promote, outside)
    assert registry.pointer() == Pointer()
    assert Verdicts(registry.root).of("v0001") is None
    assert config_of(small_models).models == small_models
