"""Templates give the text that transformers gives, and nothing of what else they can do reaches this process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_templates import LOOPING, MESSAGES, RAISING, TEMPLATES
from mlx_lm.utils import load_tokenizer
from model_dirs import write_tokenizer
from mortal import environment

from draftloop.prompts import template_sandbox as templates
from draftloop.prompts import template_worker
from draftloop.prompts.template_sandbox import TemplateFailed, render


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_gives_what_transformers_makes_of_it(name: str, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, chat_template=TEMPLATES[name])
    tokenizer = load_tokenizer(tmp_path)
    for messages in (MESSAGES, MESSAGES[1:2]):
        expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        variables = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
        given = {**tokenizer.special_tokens_map, "enable_thinking": False, **variables}
        assert render(TEMPLATES[name], given, limit=10_000, seconds=10) == expected


# -- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", RAISING, ids=range(len(RAISING)))
def test_whatever_a_template_raises_is_a_line_of_plain_characters(template: str) -> None:
    with pytest.raises(TemplateFailed) as caught:
        render(template, {"messages": []}, limit=1000, seconds=10)
    said = str(caught.value)
    assert RAISING[template] in said
    assert 0 < len(said) <= 200
    assert said.isprintable()
    assert render("and {{ x }}", {"x": "the next"}, limit=1000, seconds=10) == "and the next"


def test_an_error_that_cannot_be_said_is_named() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert template_worker._line(Mute()) == "Mute"
    assert template_worker._line(template_worker.TemplateError("")) == "TemplateError"


@pytest.mark.parametrize("name", LOOPING)
def test_a_template_that_does_not_end_is_ended_and_not_tried_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "_GIVEN_UP", {})
    with pytest.raises(TemplateFailed, match=r"it took more than 1 s of CPU time \(speculative.template_seconds\)"):
        render(LOOPING[name], {}, limit=1000, seconds=1)
    monkeypatch.setattr(templates, "_started", lambda: pytest.fail("it was tried again"))
    with pytest.raises(TemplateFailed, match="it took more than 1 s"):
        render(LOOPING[name], {}, limit=1000, seconds=1)
    monkeypatch.undo()
    assert render("{{ x }}", {"x": 1}, limit=1000, seconds=1) == "1"


def test_the_seconds_are_those_of_one_prompt_and_not_of_the_run() -> None:
    work = "{% for a in range(600) %}{% for b in range(600) %}{% endfor %}{% endfor %}{{ x }}"
    worker = templates._started()
    for x in range(40):
        assert render(work, {"x": x}, limit=1000, seconds=1) == str(x)
    assert templates._started() is worker


@pytest.mark.skipif(sys.platform != "linux", reason="the system limits memory on Linux alone")
@pytest.mark.parametrize("template", ["{{ 'a' * 10 ** 10 }}", "{{ 'a' | center(10 ** 10) }}"])
def test_a_template_that_takes_all_memory_gets_none(template: str) -> None:
    with pytest.raises(TemplateFailed, match="MemoryError"):
        render(template, {}, limit=1000, seconds=10)


def test_where_the_system_does_not_limit_memory_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "_WATCHED", True)
    monkeypatch.setattr(templates, "MEMORY_BYTES", 1)
    monkeypatch.setattr(templates, "_resident_bytes", lambda _: 2)
    with pytest.raises(TemplateFailed, match="it took more than 0 MB of memory"):
        render(LOOPING["loops"], {}, limit=1000, seconds=10)


def test_a_process_has_some_memory() -> None:
    try:
        assert templates._resident_bytes(os.getpid()) > 1_000_000
    except FileNotFoundError:
        pytest.skip("there is no ps here")


def test_a_child_that_hangs_is_ended_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "_GIVEN_UP", {})
    monkeypatch.setattr(templates, "_PATIENCE", 0)
    os.kill(templates._started()._process.pid, signal.SIGSTOP)
    with pytest.raises(TemplateFailed, match="it took longer than 0 s"):
        render("{{ 'never' }}", {}, limit=1000, seconds=1)


def test_a_child_that_dies_is_said_and_replaced() -> None:
    worker = templates._started()
    os.kill(worker._process.pid, signal.SIGKILL)
    with pytest.raises(TemplateFailed, match="the process that rendered it was ended by signal 9"):
        render("{{ x }}", {"x": "y" * 1_000_000}, limit=10_000_000, seconds=10)
    assert render("{{ x }}", {"x": 1}, limit=1000, seconds=10) == "1"


@pytest.mark.parametrize(
    "template", ["{% for a in range(99999) %}{% for b in range(99999) %}ab{% endfor %}{% endfor %}", "{{ 'a' * 1001 }}"]
)
def test_a_text_longer_than_the_limit_is_not_even_written(template: str) -> None:
    assert render(template, {}, limit=1000, seconds=10) is None
    assert render("{{ 'a' * 1000 }}", {}, limit=1000, seconds=10) == "a" * 1000


# -- the child --------------------------------------------------------------------------------------------------------


def test_an_interrupted_wait_does_not_give_its_answer_to_the_next_question() -> None:
    def press() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(0.3, press)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may ignore it
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            render(LOOPING["loops"], {}, limit=1000, seconds=60)
    finally:
        signal.signal(signal.SIGINT, before)
    assert render("{{ x }}", {"x": "mine"}, limit=1000, seconds=10) == "mine"


PROGRAM = """
import sys, time
from draftloop.prompts import template_sandbox as templates
assert "mlx" not in sys.modules
templates.render("{{ 1 }}", {}, limit=9, seconds=9)
print(templates._started()._process.pid, flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def program() -> Iterator[Any]:
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(
        command, stdin=-1, stdout=-1, stderr=subprocess.DEVNULL, text=True, env=environment(), start_new_session=True
    ) as process:
        yield process
        process.kill()


def is_gone(pid: int) -> bool:
    """Within half a minute: as a zombie that nobody waited for, too."""
    for _ in range(600):
        try:
            os.kill(pid, 0)
            state = Path(f"/proc/{pid}/stat")
            if state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("how", ["ends", "is killed"])
def test_the_child_ends_with_its_parent_however_that_one_ends(how: str, program: Any) -> None:
    child = int(program.stdout.readline())
    assert not Path(f"/proc/{child}").exists() or os.getpgid(child) != os.getpgid(program.pid)
    if how == "ends":
        program.stdin.close()
    else:
        program.kill()
    program.wait()
    assert is_gone(child)


def test_the_child_imports_nothing_of_this_package_nor_from_where_it_is_started(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('not this one')")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from draftloop.prompts.template_sandbox import render as r; print(r('{{ 1 }}', {}, limit=9, seconds=9))",
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment() | {"PYTHONSAFEPATH": "1", "PYTHONPATH": environment().get("PYTHONPATH", "")},
        check=True,
    )
    assert done.stdout == "1\n"
