"""Commands run in this process, in a directory of their own, with stdout and stderr apart."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from draftloop.cli import run_command
from draftloop.config import Models


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """stderr but for the line in which a command that loads models says which these are."""
        return "".join(line for line in self.err.splitlines(keepends=True) if " · data " not in line)

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        found = json.loads(self.out)
        assert found["schema_version"] == 1
        return found


Call = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty directory, so that no configuration is found by chance; logging is put back as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.root, "handlers", list(logging.root.handlers))
    level = logging.root.level
    yield
    logging.root.setLevel(level)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command line that loads no models."""

    def run_it(*arguments: str) -> Outcome:
        capsys.readouterr()
        code = run_command(list(arguments))
        out, err = capsys.readouterr()
        return Outcome(code, out, err)

    return run_it


@pytest.fixture
def pair_flags(small_models: Models) -> list[str]:
    """The flags that name the small pair."""
    return ["--model", small_models.target, "--draft-model", small_models.draft]


@pytest.fixture
def call_with_pair(call: Call, pair_flags: list[str]) -> Call:
    """Run a command line on the small pair."""
    return lambda *arguments: call(*arguments, *pair_flags)
