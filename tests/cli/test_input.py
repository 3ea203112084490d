"""What people have, given to `collect-data`: chats with tools, lines of many kinds, bad ones, other encodings, logs."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlx_lm.utils import load_tokenizer
from model_dirs import CHAT_TEMPLATE, edit_json

from draftloop.config import Models
from draftloop.data.log import FailureLog
from draftloop.data.records import Record

LOG = Path("data/failures/failures.jsonl")
SHORT = ["--max-tokens", "4"]
ASKED = {"role": "user", "content": "How warm is it in Lima?"}
CALL = {"id": "a1", "type": "function", "function": {"name": "temperature", "arguments": '{"city": "Lima"}'}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "a1", "content": "19 degrees"}
TOOL = {"type": "function", "function": {"name": "temperature", "parameters": {"type": "object"}}}
TOOLS = (
    "{% if tools %}[tools]{{ tools | tojson }}{% endif %}{% for message in messages %}[{{ message.role }}]"
    "{{ message.content }}{% for call in message.tool_calls or [] %}<{{ call.function.arguments.city }}>{% endfor %}"
    "{{ message.tool_call_id or '' }}\n{% endfor %}[assistant]{% if style %}[{{ style }}]{% endif %}"
)


@pytest.fixture
def call_with(call, small_models: Models, tmp_path: Path) -> Callable[..., Any]:
    """Run a command on the small pair with another chat template."""

    def run(template: str, *arguments: str) -> Any:
        for role in ("target", "draft"):
            if not (tmp_path / role).exists():
                shutil.copytree(getattr(small_models, role), tmp_path / role)
            edit_json(tmp_path / role / "tokenizer_config.json", chat_template=template)
        return call(*arguments, "--model", str(tmp_path / "target"), "--draft-model", str(tmp_path / "draft"))

    return run


def lines(name: str, *found: Any) -> list[str]:
    Path(name).write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in found))
    return ["--prompts-file", name]


def records() -> list[Record]:
    return list(FailureLog(LOG).records())


def read_by_model(record: Record) -> str:
    return str(load_tokenizer(Path("target")).decode(list(record.prompt_tokens)))


def test_a_chat_goes_to_the_template_and_into_the_record_whole(call_with) -> None:
    prompts = lines("p.jsonl", {"messages": [ASKED, CALLING, RESULT], "tools": [TOOL]})
    found = call_with(TOOLS, "collect-data", *prompts, *SHORT)
    assert found.code == 0
    (record,) = records()
    assert record.messages == (ASKED, {**CALLING, "content": ""}, RESULT)
    assert record.tools == (TOOL,)
    chat = "[user]How warm is it in Lima?\n[assistant]<Lima>\n[tool]19 degreesa1\n[assistant]"
    assert read_by_model(record) == f"[tools]{json.dumps([TOOL])}{chat}"
    assert "no place for tools" not in found.err


def test_a_template_without_a_place_for_tools_is_named(call_with) -> None:
    calling = {"messages": [ASKED, CALLING, RESULT]}
    prompts = lines("p.jsonl", {"messages": [ASKED], "tools": [TOOL]}, {"messages": [ASKED]}, calling, calling)
    found = call_with(CHAT_TEMPLATE, "collect-data", *prompts, *SHORT)
    assert "the target's chat template has no place for tools: it leaves out those of 1 prompts\n" in found.err
    assert "the target's chat template has no place for calls of tools: it leaves out those of 2 prompts\n" in found.err


def test_bad_lines_are_skipped_named_and_counted_and_the_others_collected(call_with) -> None:
    prompts = lines(
        "p.jsonl",
        {"prompt": "one"},
        '{"prompt": ',
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        {"conversations": [{"from": "human", "value": "two"}, {"from": "gpt", "value": "x"}]},
        {"instruction": "three", "input": "four", "output": "x"},
    )
    found = call_with(TOOLS, "collect-data", *prompts, *SHORT, "--json")
    assert found.code == 0
    assert (found.json["prompts"], found.json["generations"]) == (5, 3)
    assert found.json["skipped"] == {"bad line": 1, "not text": 1}
    assert [line.partition(":")[0] for line in found.json["skipped_prompts"]] == ["p.jsonl, line 2", "p.jsonl, line 3"]
    assert (found.json["converted"], found.json["reference_answers"]) == ({"ShareGPT": 1, "alpaca": 1}, 2)
    assert "converted to prompts: 1 of ShareGPT, 1 of alpaca\n" in found.err
    assert "answers left out, for the target answers anew: 2\n" in found.err
    assert "skipped: p.jsonl, line 2: bad line, not a JSON object: " in found.err
    assert [record.prompt for record in records()] == ["one", "two", "three\n\nfour"]


def test_many_bad_lines_are_all_named_the_first_ones_with_their_reasons(call_with) -> None:
    found = call_with(TOOLS, "collect-data", *lines("p.jsonl", *["nonsense"] * 30, {"prompt": "a"}), *SHORT)
    said = [line for line in found.err.splitlines() if line.startswith("skipped")]
    first = [line.partition(": bad line")[0] for line in said[:20]]
    assert first == [f"skipped: p.jsonl, line {i}" for i in range(1, 21)]
    assert said[20:] == [f"skipped too: p.jsonl, lines {', '.join(map(str, range(21, 31)))}"]


def test_a_strict_run_refuses_the_file_before_anything_is_loaded(call) -> None:
    prompts = lines("p.jsonl", {"prompt": "a"}, "nonsense")
    found = call("collect-data", *prompts, "--strict", "--model", "nowhere")  # which would be refused otherwise
    assert (found.code, found.out) == (2, "")
    assert found.err.startswith("error: p.jsonl, line 2: not a JSON object")
    assert not Path("data").exists()


def test_a_file_without_one_good_line_is_refused(call_with) -> None:
    found = call_with(TOOLS, "collect-data", *lines("p.jsonl", "nonsense", "[]"), *SHORT)
    assert found.code == 2
    assert "error: none of 2 prompts is usable: p.jsonl, line 1: not a JSON object" in found.err


def test_an_answer_at_the_end_is_answered_anew(call_with) -> None:
    chat = [ASKED, {"role": "assistant", "content": "Warm."}]
    call_with(TOOLS, "collect-data", *lines("p.jsonl", {"messages": chat}), *SHORT)
    (record,) = records()
    assert record.messages == (ASKED,)
    assert read_by_model(record).endswith("[user]How warm is it in Lima?\n[assistant]")


def test_a_prompt_on_which_the_template_fails_is_skipped_alone(call_with) -> None:
    template = "{{ 1 // (messages | length - 3) }}" + CHAT_TEMPLATE
    prompts = lines("p.jsonl", {"prompt": "one"}, {"messages": [ASKED, CALLING, RESULT]}, {"prompt": "two"})
    found = call_with(template, "collect-data", *prompts, *SHORT, "--json")
    assert (found.code, found.json["generations"], found.json["skipped"]) == (0, 2, {"chat template": 1})
    assert "skipped: p.jsonl, line 2 ('How warm is it in Lima?" in found.err
    assert "ZeroDivisionError" in found.err


@pytest.mark.parametrize("template", ["{{ 1 + 'x' }}", "{% for i in range(10 ** 9) %}x{% endfor %}"])
def test_a_template_that_fails_on_everything_is_an_error_in_json_too(template: str, call_with) -> None:
    found = call_with(template, "generate", "hi", "--json")
    assert (found.code, found.json["status"], found.json["exit_code"]) == (2, "error", 2)
    assert "chat template" in found.json["error"]


def test_arguments_of_the_template_are_part_of_the_records_conditions(call_with) -> None:
    brief, long = ("--chat-template-args", '{"style": "brief"}'), ("--chat-template-args", '{"style": "long"}')
    command = ["collect-data", "-p", "hi", *SHORT, "--json"]
    found = call_with(TOOLS, *command, *brief).json
    assert (found["generations"], found["chat_template_args"]) == (1, {"style": "brief"})
    assert call_with(TOOLS, *command, *brief).json["skipped"] == {"already collected": 1}
    assert 'adapter none, template arguments {"style": "long"}' in call_with(TOOLS, *command[:-1], *long).out
    first, second = records()
    assert (first.chat_template_args, second.chat_template_args) == ({"style": "brief"}, {"style": "long"})
    assert read_by_model(first) == "[user]hi\n[assistant][brief]"
    assert read_by_model(second) == "[user]hi\n[assistant][long]"


def test_the_arguments_may_come_from_a_file_and_from_the_environment(call_with, monkeypatch) -> None:
    Path("c.yaml").write_text("speculative:\n  chat_template_args: {style: brief, enable_thinking: false}\n")
    call_with(TOOLS, "-c", "c.yaml", "collect-data", "-p", "hi", *SHORT)
    monkeypatch.setenv("DRAFTLOOP_SPECULATIVE_CHAT_TEMPLATE_ARGS", '{"style": "brief"}')
    call_with(TOOLS, "collect-data", "-p", "hi", *SHORT)
    kept = [record.chat_template_args for record in records()]
    assert kept == [{"style": "brief", "enable_thinking": False}, {"style": "brief"}]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("thinking=off", 'expected a JSON object, such as {"enable_thinking": false}'),
        ("[1]", "expected a JSON object"),
        ('{"messages": []}', "messages comes with the prompt and cannot be set"),
        ('{"a": NaN}', "a number that JSON has not"),
    ],
)
def test_arguments_that_are_none_are_refused(given: str, reason: str, call) -> None:
    found = call("generate", "hi", "--chat-template-args", given)
    assert found.code == 2
    assert reason in found.err


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_a_file_in_another_encoding_with_its_mark_is_read(encoding: str, call_with) -> None:
    Path("p.txt").write_bytes("Grüße\rWie geht’s?\r\n".encode(encoding))
    call_with(TOOLS, "collect-data", "--prompts-file", "p.txt", *SHORT)
    assert [record.prompt for record in records()] == ["Grüße", "Wie geht’s?"]


@pytest.mark.parametrize(
    "content", ["good\nSchöne Grüße".encode("latin-1"), b"good\nN\0UL", "good\ng".encode("utf-16-le")]
)
def test_text_that_is_in_no_such_encoding_is_refused_with_the_line(content: bytes, call) -> None:
    Path("p.txt").write_bytes(content)
    found = call("collect-data", "--prompts-file", "p.txt")
    assert found.code == 2
    assert found.err.startswith(("error: p.txt, line 2: it ", "error: p.txt, line 1: it has a NUL"))
    assert not Path("data").exists()


def test_logs_of_clients_are_collected_from(call_with) -> None:
    with closing(sqlite3.connect("logs.db")) as database:
        database.execute("create table responses (id text primary key, prompt text, system text, response text)")
        database.execute("insert into responses values ('1', 'of llm', '', 'x')")
        database.commit()
    request = {"model": "m", "messages": [{"role": "user", "content": "of a proxy"}]}
    lines("requests.log", {"request": request, "response": {"id": 1}})
    found = call_with(TOOLS, "collect-data", "--from", "logs.db", "--from", "requests.log", *SHORT, "--json")
    assert [record.prompt for record in records()] == ["of llm", "of a proxy"]
    assert found.json["converted"] == {"llm's log": 1, "logged request": 1}


def test_no_prompts_at_all_is_a_mistake_that_names_the_ways_to_give_some(call) -> None:
    found = call("collect-data")
    assert (found.code, found.err) == (2, "error: no prompts: give -p TEXT, --prompts-file FILE or --from LOG\n")
