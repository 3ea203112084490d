"""The learning benchmark does what its command line asks for, and another pair has a results file of its own."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def options(root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(root / "benchmarks")
    return importlib.import_module("learning_options")


OTHER = ["--target", "big", "--draft", "small", "--name", "learning_big"]


def test_the_embedded_pair_has_the_whole_table_and_main_its_first_rows(options: ModuleType) -> None:
    whole, main = options.parse([]), options.parse(["--main"])
    assert (whole.name, main.name) == ("learning", "learning_main")
    assert whole.setup.is_embedded
    assert set(main.scope.recipes) < set(whole.scope.recipes)
    assert main.scope.sizes == ()
    assert main.setup.steps is None  # as many as draftloop makes


def test_another_pair_has_fewer_and_smaller_runs_of_the_first_rows(options: ModuleType) -> None:
    found = options.parse(OTHER)
    assert (found.setup.target, found.setup.draft, found.name) == ("big", "small", "learning_big")
    assert not found.setup.is_embedded
    assert found.scope.recipes == options.MAIN
    assert len(found.scope.seeds) == 1
    assert found.setup.size.failures == options.DRAWN_FROM * found.scope.at


def test_what_is_asked_for_stands_in_place_of_the_default(options: ModuleType) -> None:
    asked = ["--failures", "30", "--steps", "60", "--batch-size", "2", "--seeds", "2", "--reported", "7"]
    found = options.parse([*OTHER, *asked, "--validation", "5", "--tokens", "24"])
    size = found.setup.size
    assert (found.scope.at, found.setup.steps, found.setup.batch_size, found.scope.seeds) == (30, 60, 2, (0, 1))
    assert (size.failures, size.reported, size.validation, size.tokens) == (60, 7, 5, 24)


def test_a_search_begins_lower_for_cross_entropy(options: ModuleType) -> None:
    scope = options.parse([]).scope
    assert max(scope.first_rates("mlx_lm.lora")) < min(scope.first_rates("ours"))
    assert set(scope.first_rates("kl")) <= set(options.GRID)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--target", "big"], "go together"),
        (["--target", "big", "--draft", "small"], "needs a results file of its own"),
        ([*OTHER[:4], "--name", "speed"], "needs a results file of its own"),
        (["--steps", "10"], "warms up"),
        (["--seeds", "0"], "--seeds"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    options: ModuleType, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as refused:
        options.parse(arguments)
    assert refused.value.code == 2
    assert said in capsys.readouterr().err
