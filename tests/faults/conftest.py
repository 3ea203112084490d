"""The harness of the table of faults: small counts in the ordinary run, all of them and the table with `--full`.

A test module says which row it serves by `pytestmark = pytest.mark.row("...")`; its tests take the fixture `row`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from benchmark_scripts import load
from fault_table import FAILED, PASSED, ROWS, Row, Table

if TYPE_CHECKING:
    from server import Server
    from shop import Shop

    from draftloop.config import Models

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / "benchmarks" / "results.py"
LONGEST_S = 1500  # of one test at its full count
CONTEXT = 4096  # tokens that `patient_models` hold
_TABLE = pytest.StashKey[Table]()
_BEGAN = time.time()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="every fault at the full count of the table (make faults)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "row(name): the row of the table of faults that a test serves")
    table = config.stash[_TABLE] = Table(bool(config.getoption("full", False)))
    config.pluginmanager.register(_Outcomes(table))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.user_properties.append(("row", _row_name(item)))
            if config.stash[_TABLE].full:
                item.add_marker(pytest.mark.timeout(LONGEST_S))


def _row_name(item: pytest.Item) -> str:
    marker = item.get_closest_marker("row")
    name = marker.args[0] if marker is not None else None
    if name not in ROWS:
        raise pytest.UsageError(f"{item.nodeid}: row({name!r}); expected one of {', '.join(ROWS)}")
    return str(name)


@pytest.fixture
def row(request: pytest.FixtureRequest) -> Row:
    """The row of the table that this test serves: how much to do, and where to say what was done."""
    return request.config.stash[_TABLE].rows[_row_name(request.node)]


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Run a command line in this process; a mistake must end in one line, which the caller finds in `err`."""
    from draftloop.cli import run_command

    monkeypatch.setattr(logging.root, "handlers", list(logging.root.handlers))
    monkeypatch.setattr(logging.root, "level", logging.root.level)

    def run_it(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = run_command([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return Outcome(code, out, err)

    return run_it


@pytest.fixture(scope="session")
def collected(tmp_path_factory: pytest.TempPathFactory, small_models: Models) -> Shop:
    """Real generations of sixty prompts, in all three splits, and a configuration that is quick; nobody changes it."""
    from builders import NO_SYNC
    from shop import PROMPTS, Shop, config_of

    from draftloop.data_directory import DataDirectory

    gate = {"min_heldout_prompts": 2, "live_prompts": 0}
    training = {"epochs": 1, "min_failure_cases": 5}
    config = config_of(small_models, gate=gate, training=training, speculative={"max_tokens": 8})
    shop = Shop(DataDirectory(tmp_path_factory.mktemp("collected") / "data", files=NO_SYNC), config)
    shop.collect(PROMPTS[:60])
    return shop


@pytest.fixture(scope="session")
def patient_models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """A small pair that ends no text by itself: an answer has as many tokens as it may have."""
    from model_dirs import edit_json, write_pair
    from safetensors.numpy import load_file, save_file

    root = tmp_path_factory.mktemp("patient_pair")
    models = write_pair(root)
    for name in ("target", "draft"):
        edit_json(root / name / "config.json", max_position_embeddings=CONTEXT)
        weights = load_file(root / name / "model.safetensors")
        weights["lm_head.weight"][0] = 0.0  # of the end of a text: some other logit is always larger
        save_file(weights, root / name / "model.safetensors", metadata={"format": "mlx"})
    return models


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, patient_models: Models) -> Iterator[Server]:
    """One that all faults of clients meet; it has little room and little patience."""
    from server import Server

    settings = {"serve.max_connections": 24, "serve.write_seconds": 2, "serve.head_seconds": 2, "serve.body_seconds": 2}
    flags = ("--model", patient_models.target, "--draft-model", patient_models.draft, "--num-draft-tokens", "3")
    limits = ("--max-concurrent", "4", "--queue", "16")
    with Server(tmp_path_factory.mktemp("served") / "data", *flags, *limits, settings=settings) as found:
        yield found


class _Outcomes:
    """Enters how every test of a row ended."""

    def __init__(self, table: Table) -> None:
        self.table = table

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = dict(report.user_properties).get("row")
        if name is not None and report.failed:
            self.table.rows[str(name)].tests[FAILED] += 1
        elif name is not None and report.passed and report.when == "call":
            self.table.rows[str(name)].tests[PASSED] += 1


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    table = config.stash[_TABLE]
    if not table.full and not _is_alone(config.args):
        return
    whole = [Path(argument).resolve() for argument in config.args] == [HERE] and not config.option.keyword
    terminalreporter.section("faults")
    for line in table.lines(everything=whole):
        terminalreporter.write_line(line)
    if table.full and whole:
        minutes = round((time.time() - _BEGAN) / 60, 1)
        rows = [row.to_json() for row in table.rows.values()]
        path = load(RESULTS).write("faults", {"minutes": minutes}, [], rows=rows)
        terminalreporter.write_line(f"{minutes} minutes; written to {path}")


def _is_alone(arguments: Sequence[str]) -> bool:
    """Whether nothing but faults was asked for: other runs end without the table."""
    return all(Path(argument.split("::")[0]).resolve().is_relative_to(HERE) for argument in arguments)
