"""What reads, is refused or has nothing to do makes no data directory: every command, new ones included.

Whoever looks around in another directory leaves nothing behind there, and whoever mistypes `--data-dir` finds no second
one later.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from draftloop.cli import cli

PAIR = "<pair>"  # stands for the flags that name the small pair
PROMPTS = ["--prompts-file", "p.txt"]
SHORT = ["--max-tokens", "4", "--num-draft-tokens", "2"]
LEAVE_NOTHING: dict[str, list[list[str]]] = {
    "adapters export": [["latest", "--to", "out"], ["v0001", "--to", "out", "--fuse"]],
    "adapters list": [[]],
    "adapters promote": [["latest"], ["v0001"], ["none"]],
    "adapters prune": [[], ["--dry-run"]],
    "adapters rollback": [[]],
    "adapters show": [["latest"], ["champion"]],
    "benchmark acceptance": [[], [*PROMPTS, *SHORT, "--live", PAIR]],
    "benchmark speed": [[], [*PROMPTS, *SHORT, "--repeats", "1", PAIR]],
    "collect-data": [
        [],
        ["-p", "", PAIR],
        ["--prompts-file", "nowhere.txt"],
        ["--prompts-file", "empty.txt"],
        ["-p", "x", "--max-tokens", "9999", PAIR],
        ["-p", "x", "--model", "nowhere"],
        ["-p", "x", "--draft-model", "embedded:draft", "--model", "<target>"],
        ["-p", "x", "--adapter", "v0001", PAIR],
        ["-p", "x", "--temp", "-1", PAIR],
    ],
    "demo": [["--keep", "."]],
    "doctor": [["--no-pair"], [PAIR], ["--model", "nowhere"]],
    "log compact": [[], ["--max-log-mb", "1"], ["--max-log-mb", "1", "--dry-run"], ["--max-log-mb", "-1"]],
    "log rm": [[], ["--source", "x"], ["--source", "x", "--yes"], ["--source", "x", "--dry-run"], ["--before", "x"]],
    "models": [[], ["llama"], ["nothing"]],
    "generate": [["x", *SHORT, PAIR], ["x", "--max-tokens", "4", PAIR], ["", PAIR], ["x", "--model", "nowhere"]],
    "retrain": [["--dry-run"], ["--dry-run", "--force"], ["--nothing"]],  # without it, it writes its line of the audit
    "serve": [["--host", "0.0.0.0"], ["--api-key-file", "nowhere"], ["--model", "nowhere", "--port", "0"]],
    "schedule install": [["--kind", "cron"]],  # with --yes the log of its runs lies there
    "schedule remove": [["--kind", "cron"]],
    "schedule run": [["--nothing"]],  # writes the log of its runs
    "schedule show": [["--kind", "cron"]],
    "status": [[], ["--json"], [PAIR]],
    "train": [[], [PAIR], ["--resume"], ["--resume", "r0001"], ["--epochs", "0"], ["--model", "nowhere"]],
}


def leaves(group: click.Group, *path: str) -> Iterator[str]:
    """The full names of all commands."""
    for name, command in sorted(group.commands.items()):
        if isinstance(command, click.Group):
            yield from leaves(command, *path, name)
        else:
            yield " ".join([*path, name])


ALL = list(leaves(cli))
CASES = [(name, arguments) for name, calls in LEAVE_NOTHING.items() for arguments in calls]


@pytest.fixture(autouse=True)
def _files(_place: None) -> None:
    Path("p.txt").write_text("the target\n")
    Path("empty.txt").write_text("\n")


def test_every_command_is_among_them() -> None:
    """A new command says here how it is called without anything to write."""
    assert sorted(LEAVE_NOTHING) == ALL


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=[f"{name} {' '.join(more)}" for name, more in CASES])
@pytest.mark.some(8)
def test_it_leaves_nothing_behind(name: str, arguments: list[str], call, pair_flags: list[str]) -> None:
    before = sorted(Path().rglob("*"))
    stand_ins = {PAIR: pair_flags, "<target>": pair_flags[1:2]}
    found = call(*name.split(), *(part for one in arguments for part in stand_ins.get(one, [one])))
    assert found.code in (0, 1, 2, 10)
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("option", ["--help", "--no-such-option"])
def test_help_and_a_mistyped_option_leave_nothing_behind(name: str, option: str, call) -> None:
    before = sorted(Path().rglob("*"))
    assert call(*name.split(), option).code == (0 if option == "--help" else 2)
    assert sorted(Path().rglob("*")) == before


def test_collecting_makes_it_with_the_first_generation(call_with_pair) -> None:
    assert call_with_pair("collect-data", "-p", "the target", "--max-tokens", "4").code == 0
    assert Path("data/failures/failures.jsonl").is_file()


def test_where_there_is_one_what_was_measured_is_kept_there(call_with_pair) -> None:
    Path("data").mkdir()
    call_with_pair("generate", "the target", "--max-tokens", "4")
    assert Path("data/costs.json").is_file()
