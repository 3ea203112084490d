"""A model directory that wants to run code: nothing of it runs, nobody is asked, and what cannot be done is one line.

Each command runs in a process of its own, with "y" on its stdin, once as a pipe and once as a terminal.
"""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from chat_templates import LOOPING, RAISING
from fault_table import Row
from model_dirs import edit_json
from mortal import environment

from draftloop.config import Models

pytestmark = pytest.mark.row("a model directory that wants to run code")

PROGRAM = """
import os, pathlib
(pathlib.Path(os.environ["RAN"])).touch()
from transformers import LlamaConfig, PreTrainedTokenizerFast
from mlx_lm.models.llama import Model, ModelArgs
class OwnTokenizer(PreTrainedTokenizerFast): pass
class OwnConfig(LlamaConfig): pass
"""
LONGER = "{% for a in range(99999) %}{% for b in range(99999) %}" + "a" * 999 + "{% endfor %}{% endfor %}"


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Workplace:
    """A pair of one's own to spoil, and commands that load it."""

    root: Path

    @property
    def ran(self) -> bool:
        """Whether a program of a directory did, and all that it left so far is forgotten."""
        found = (self.root / "ran").exists()
        (self.root / "ran").unlink(missing_ok=True)
        return found

    def directory(self, role: str) -> Path:
        return self.root / role

    def run(self, *arguments: object, terminal: bool = False, trust: bool = False) -> Ended:
        """A command, with "y" on its stdin."""
        (self.root / "config.yaml").write_text(
            f"models:\n  target: {self.directory('target')}\n  draft: {self.directory('draft')}\n"
            f"  trust_remote_code: {str(trust).lower()}\n"
            "speculative: {max_tokens: 2, template_seconds: 1}\n"
        )
        command = [sys.executable, "-m", "draftloop", "-c", "config.yaml", "--data-dir", "data", *map(str, arguments)]
        return (_in_terminal if terminal else _with_pipe)(command, self.root)


def _settings(root: Path) -> dict[str, str]:
    return environment() | {"RAN": str(root / "ran"), "HF_MODULES_CACHE": str(root / "modules")}


def _with_pipe(command: list[str], root: Path) -> Ended:
    done = subprocess.run(
        command, input="y\n" * 9, capture_output=True, text=True, check=False, cwd=root, env=_settings(root)
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def _in_terminal(command: list[str], root: Path) -> Ended:
    """As a person would run it: stdin and stderr are one terminal, at which "y" is typed ahead."""
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            command, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, cwd=root, env=_settings(root), text=True
        ) as process:
            os.close(theirs)
            os.write(ours, b"y\n" * 9)
            shown = bytearray()
            while True:
                try:
                    piece = os.read(ours, 65536)
                except OSError:  # how Linux says that nobody has the other end any more
                    break
                if not piece:
                    break
                shown += piece
            assert process.stdout is not None
            out = process.stdout.read()
        return Ended(process.returncode, out, shown.decode().replace("\r\n", "\n").replace("y\n", "", 9))
    finally:
        os.close(ours)


@pytest.fixture
def place(tmp_path: Path, small_models: Models) -> Workplace:
    for role in ("target", "draft"):
        shutil.copytree(getattr(small_models, role), tmp_path / role)
        (tmp_path / role / "own.py").write_text(PROGRAM)
    return Workplace(tmp_path)


def wants_tokenizer(directory: Path) -> None:
    edit_json(
        directory / "tokenizer_config.json",
        auto_map={"AutoTokenizer": [None, "own.OwnTokenizer"]},
        tokenizer_class="OwnTokenizer",
    )


def wants_model(directory: Path) -> None:
    edit_json(directory / "config.json", model_file="own.py")


def wants_config(directory: Path) -> None:
    """And is loaded without: transformers has the class of this tokenizer."""
    edit_json(directory / "config.json", model_type="iquestcoder", auto_map={"AutoConfig": "own.OwnConfig"})


Wants = Callable[[Path], None]
COMMANDS: dict[str, list[object]] = {
    "generate": ["generate", "the target"],
    "collect": ["collect-data", "-p", "the target"],
    "doctor": ["doctor"],
    "benchmark": ["benchmark", "speed", "--prompts-file", "prompts.txt"],
}


def cases(row: Row) -> list[tuple[Wants, str, str, bool]]:
    """What is wanted, by which role, of which command, with a terminal or without."""
    every = [
        (wants, role, command, terminal)
        for wants in (wants_tokenizer, wants_model)
        for role in ("target", "draft")
        for command in COMMANDS
        for terminal in (False, True)
    ]
    few = [
        (wants_tokenizer, "target", "generate", True),
        (wants_tokenizer, "draft", "doctor", True),
        (wants_tokenizer, "draft", "collect", False),
        (wants_model, "draft", "generate", True),
    ]
    return every if row.full else few


@pytest.mark.some(3)
def test_a_directory_that_needs_its_own_python_is_refused_and_nobody_is_asked(place: Workplace, row: Row) -> None:
    (place.root / "prompts.txt").write_text("the target\n")
    chosen = cases(row)
    for wants, role, command, terminal in chosen:
        shutil.copytree(place.directory(role), place.root / "kept")
        wants(place.directory(role))
        ended = place.run(*COMMANDS[command], terminal=terminal)
        assert not place.ran, (wants, role, command)
        err = " ".join(ended.err.split()) if terminal else ended.err.strip()  # a terminal's are as long as it is wide
        said = ended.out if command == "doctor" else err
        (line,) = [line for line in said.splitlines() if "trust_remote_code" in line]
        assert f"{role}/" in line
        assert "models.trust_remote_code is false" in line
        if command == "doctor":
            assert ended.code == 1  # a report of everything, in which this is one problem
        else:
            assert (ended.code, err, ended.out) == (2, line, "")
        assert line.startswith("PROBLEM pair: " if command == "doctor" else "error: ")
        assert not (place.root / "modules").exists()
        shutil.rmtree(place.directory(role))
        (place.root / "kept").rename(place.directory(role))
    row.did(len(chosen), "commands on directories with Python of their own")


@pytest.mark.parametrize("wants", [wants_tokenizer, wants_model], ids=lambda wants: wants.__name__)
def test_where_it_is_trusted_it_runs_and_nobody_is_asked_either(wants: Wants, place: Workplace) -> None:
    for role in ("target", "draft"):
        wants(place.directory(role))
    ended = place.run("generate", "the target", terminal=True, trust=True)
    assert ended.code == 0, ended.err
    assert place.ran
    assert "[y/N]" not in ended.err


def test_what_a_directory_names_without_need_does_not_run_and_is_no_reason_to_refuse(place: Workplace) -> None:
    for role in ("target", "draft"):
        wants_config(place.directory(role))
    ended = place.run("generate", "the target", terminal=True)
    assert ended.code == 0, ended.err
    assert "[y/N]" not in ended.err
    assert not place.ran


TEMPLATES = [
    *RAISING,
    *LOOPING.values(),
    LONGER,
    "{{ 'a' * 10 ** 10 }}",
    "{{ '%999999999d' % 1 }}",
    "{{ '\\ud800' }}",
    "{% set x = namespace(a='a') %}{% for i in range(99) %}{% set x.a = x.a ~ x.a %}{% endfor %}{{ x.a }}",
    "{" * 100_000,
    "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "{{ messages.__init__.__globals__ }}",
    "{{ self.__init__.__globals__.__builtins__.__import__('os').system('touch $RAN') }}",
    "{% import 'os' as os %}{{ os.system('touch $RAN') }}",
    "{{ (messages | attr('__class__')).__base__.__subclasses__() }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}{{ 1 / 0 }}",
    "{{ lipsum.__globals__['os'].system('touch $RAN') }}",
]


def set_template(place: Workplace, template: Any) -> None:
    edit_json(place.directory("target") / "tokenizer_config.json", chat_template=template)


def test_a_template_of_any_kind_is_one_line_where_the_prompt_is_the_only_one(
    place: Workplace, command: Callable[..., Any], row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAN", str(place.root / "ran"))
    monkeypatch.chdir(place.root)
    chosen = TEMPLATES if row.full else TEMPLATES[::4]
    flags = ["--model", place.directory("target"), "--draft-model", place.directory("draft"), "--max-tokens", 2]
    (place.root / "config.yaml").write_text("speculative: {template_seconds: 1}\n")
    for template in chosen:
        set_template(place, template)
        for asked in (["generate", "the target"], ["collect-data", "-p", "the target"])[: 2 if row.full else 1]:
            ended = command("-c", "config.yaml", "--data-dir", "data", *asked, *flags)
            assert (ended.code, ended.out) == (2, ""), template[:80]
            (line,) = ended.err.splitlines()
            assert line.isprintable()
            assert "chat template" in line or "too long" in line
            assert len(line) < 500
        assert not place.ran
    row.did(len(chosen), "templates that give no text")


def test_a_template_that_is_no_text_is_one_line_too(place: Workplace, command: Callable[..., Any]) -> None:
    flags = ["--model", place.directory("target"), "--draft-model", place.directory("draft"), "--max-tokens", 2]
    for template in ({"a": "b"}, [{"name": "tool_use", "template": "x"}]):
        set_template(place, template)
        ended = command("--data-dir", place.root / "data", "generate", "the target", *flags)
        assert ended.code == 2, ended.err
        assert len(ended.err.splitlines()) == 1


def test_in_a_batch_the_prompts_that_a_template_refuses_are_skipped_and_named(place: Workplace) -> None:
    set_template(
        place, "{% if 'dog' in messages[0].content %}{{ 1 / 0 }}{% endif %}{{ messages[0].content }}[assistant]"
    )
    lines = [{"prompt": text} for text in ("the dog", "the target", "a dog", "the draft")]
    (place.root / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    ended = place.run("collect-data", "--prompts-file", "prompts.jsonl", "--json")
    assert ended.code == 0, ended.err
    values = json.loads(ended.out)
    assert (values["generations"], values["skipped"]) == (2, {"chat template": 2})
    assert values["skipped_prompts"][1].startswith("prompts.jsonl, line 3 ('a dog'): chat template, ")
    assert "ZeroDivisionError" in values["skipped_prompts"][1]


def test_a_template_that_never_ends_is_waited_for_once_in_a_batch(place: Workplace) -> None:
    set_template(place, LOOPING["loops"])
    (place.root / "prompts.txt").write_text("".join(f"prompt {number}\n" for number in range(300)))
    ended = place.run("collect-data", "--prompts-file", "prompts.txt")
    assert (ended.code, ended.out) == (2, "")
    assert "none of 300 prompts was usable" in ended.err
    assert "it took more than 1 s of CPU time" in ended.err


def test_the_export_of_a_fused_draft_holds_no_program(
    place: Workplace, command: Callable[..., Any], small_models: Models
) -> None:
    from model_dirs import write_lora

    from draftloop.models.pair import load_pair
    from draftloop.registry.registry import Registry

    named = {"AutoTokenizer": [None, "own.OwnTokenizer"]}
    edit_json(place.directory("draft") / "tokenizer_config.json", auto_map=named)
    pair = load_pair(Models(target=small_models.target, draft=str(place.directory("draft"))))
    registry = Registry(place.root / "data" / "adapters")
    fields: dict[str, Any] = {"pair": pair.identity, "record_ids": [], "parent": None}
    registry.create(lambda path: write_lora(path, pair.draft, amount=0.3) and None, fields)
    flags = ["--model", small_models.target, "--draft-model", place.directory("draft")]
    for fuse in ([], ["--fuse"]):
        to = place.root / f"out{len(fuse)}"
        ended = command("--data-dir", place.root / "data", "adapters", "export", "latest", "--to", to, *fuse, *flags)
        assert ended.code == 0, ended.err
        assert not [path for path in to.rglob("*") if path.suffix in (".py", ".pyc")]
