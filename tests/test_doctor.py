"""The doctor looks at everything, whatever it finds on the way, and says what to do about each finding."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest
from shop import Shop

from draftloop import doctor
from draftloop.config import Config, Models, Resolved
from draftloop.doctor import Finding, check_setup
from draftloop.runtime import blas, memory
from draftloop.runtime.memory import DeviceMemory
from draftloop.training.run import RunDirectory

LEARNING = "serve --learn idle"


def findings(config: Config, data_dir: Path, with_pair: bool = True) -> dict[str, Finding]:
    return {found.name: found for found in check_setup(Resolved(config, {}), data_dir, with_pair=with_pair)}


@pytest.fixture
def config(small_models: Models) -> Config:
    return Config(models=small_models)


def test_every_part_is_looked_at_and_nothing_is_changed(config: Config, tmp_path: Path) -> None:
    found = findings(config, tmp_path / "data")
    names = ["config", "platform", "packages", "BLAS", "device", "memory", "data", "pair", "caches", LEARNING]
    assert list(found) == names
    assert all(one.state == "ok" for name, one in found.items() if name not in ("BLAS", "memory", LEARNING))
    assert "one tokenizer, 300 tokens, 300 shared" in found["pair"].found
    assert "KVCache" in found["caches"].found
    assert "up to 512 tokens" in found["caches"].found
    assert list(tmp_path.iterdir()) == []


def test_the_embedded_pair_is_found_by_default(tmp_path: Path) -> None:
    assert findings(Config(), tmp_path)["pair"].state == "ok"


def test_without_the_pair_no_model_is_loaded(tmp_path: Path) -> None:
    found = findings(Config(models=Models(target="/nowhere")), tmp_path, with_pair=False)
    assert list(found) == ["config", "platform", "packages", "BLAS", "device", "memory", "data"]


def test_a_pair_that_does_not_load_is_a_problem_with_its_reason(config: Config, tmp_path: Path) -> None:
    models = config.models.model_copy(update={"draft": str(tmp_path)})
    found = findings(Config(models=models), tmp_path)["pair"]
    assert found.state == "problem"
    assert "holds no config.json" in found.found
    assert "models.draft" in found.remedy


@pytest.mark.parametrize(
    ("needed", "loaded", "state", "found"),
    [
        (True, "libopenblas.so.0", "ok", "OpenBLAS from the system serves matrix products: "),
        (True, blas.OWN, "ok", "OpenBLAS from set-up serves matrix products: "),
        (True, None, "warning", "reference BLAS"),
        (False, None, "ok", "not needed"),
    ],
)
def test_a_slow_blas_is_a_warning_with_the_package_to_install(
    needed: bool, loaded: str | None, state: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blas, "is_needed", lambda: needed)
    monkeypatch.setattr(blas, "loaded", lambda: loaded)
    monkeypatch.setattr(blas, "serving_file", lambda: Path("/here", loaded or ""))
    monkeypatch.delenv(blas.OFF, raising=False)
    finding = findings(Config(), tmp_path, with_pair=False)["BLAS"]
    assert finding.state == state
    assert found in finding.found
    assert finding.remedy == (f"run `make setup`, which gets one, or {blas.REMEDY}" if state == "warning" else "")


def test_a_directory_that_cannot_be_written_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**where: Path) -> object:
        assert where == {"dir": tmp_path}
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    found = findings(Config(), tmp_path / "data" / "deep", with_pair=False)["data"]
    assert (found.state, found.remedy) == ("problem", "choose another place with --data-dir")
    assert "Permission denied" in found.found


def test_little_memory_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "read_device", lambda: DeviceMemory(3 * 10**9, "Metal's recommended working set"))
    found = findings(Config(), tmp_path, with_pair=False)["memory"]
    assert found.state == "warning"
    assert found.found == "3.0 GB (Metal's recommended working set); training.memory = auto allows 2.4 GB"


def test_an_mlx_that_cannot_be_imported_is_a_problem_and_the_rest_is_still_looked_at(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlx_lm", None)
    found = findings(config, tmp_path)
    assert list(found) == ["config", "platform", "packages", "BLAS", "MLX", "data"]
    assert (found["MLX"].state, found["MLX"].remedy) == ("problem", "run `make setup`")


def test_a_missing_package_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: "missing" if name == "mlx" else "1.0")
    found = findings(Config(), tmp_path, with_pair=False)["packages"]
    assert (found.state, found.remedy) == ("problem", "run `make setup`")
    assert "mlx missing" in found.found


def test_who_wants_no_openblas_is_told_how_to_have_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "is_needed", lambda: True)
    monkeypatch.setattr(blas, "loaded", lambda: None)
    monkeypatch.setenv(blas.OFF, "1")
    assert findings(Config(), tmp_path, with_pair=False)["BLAS"].remedy == "unset DRAFTLOOP_NO_OPENBLAS"


@pytest.mark.parametrize(
    ("gigabytes", "state", "found"),
    [
        (10.0, "ok", "loads the target once more"),
        (0.53, "ok", "does without the target"),
        (0.4, "warning", "no memory for a training beside the server"),
    ],
)
def test_it_is_said_what_a_training_beside_the_server_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gigabytes: float, state: str, found: str
) -> None:
    """Of the embedded pair, with a limit that its user set on a machine with room."""
    monkeypatch.setattr(memory, "read_device", lambda: DeviceMemory(64 * 10**9, "a large machine"))
    config = Config.model_validate({"retrain": {"max_memory_gb": gigabytes}})
    learning = findings(config, tmp_path)[LEARNING]
    assert learning.state == state
    assert found in learning.found
    assert "GB" in learning.found


def test_the_last_training_says_how_much_time_they_take(promoted: Shop) -> None:
    found = findings(promoted.config, promoted.data.root, with_pair=False)["last training"]
    (cost,) = [run.cost() for run in RunDirectory.all(promoted.data.runs)]
    assert cost is not None
    assert f"for {cost[0]} failures, in run r0001" in found.found
