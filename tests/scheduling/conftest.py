"""A job in a scratch directory, and scratch schedulers."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stand_ins import CRONTAB, LAUNCHCTL, SYSTEMCTL, write_tool

from draftloop.scheduling.job import Every, ScheduledJob

MakeJob = Callable[..., ScheduledJob]


@pytest.fixture
def make_job(tmp_path: Path) -> MakeJob:
    """A job whose every field can be given."""

    def make(**fields: Any) -> ScheduledJob:
        directory = fields.get("directory", tmp_path)
        usual: dict[str, Any] = {
            "python": Path(sys.executable),
            "entry": ("-m", "draftloop"),
            "directory": directory,
            "data_dir": directory / "data",
            "config_file": None,
            "when": Every(60),
            "environment": {"PATH": "/usr/bin:/bin"},
            "niceness": 10,
        }
        return ScheduledJob(**{**usual, **fields})

    return make


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins of all three tools, first on PATH, with an empty home; returns where they keep their state."""
    state = tmp_path / "state"
    state.mkdir()
    units = tmp_path / "home" / ".config" / "systemd" / "user"
    for name, script in (("crontab", CRONTAB), ("systemctl", SYSTEMCTL), ("launchctl", LAUNCHCTL)):
        write_tool(tmp_path / "bin", name, script.format(state=state, units=units))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    return state
