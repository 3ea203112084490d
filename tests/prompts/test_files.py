"""Files of prompts: counted before they are read, bad lines named by their numbers, memory that does not grow."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from draftloop.errors import PromptError
from draftloop.prompts.files import PromptFile, read_prompts, survey_files
from draftloop.prompts.prompt import Prompt, SkippedPrompt


def file(directory: Path, name: str, content: bytes | str) -> Path:
    path = directory / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return path


def found(path: Path) -> list[str]:
    """Prompts by their text, and the rest with `!`, each behind the place it came from."""
    return [
        f"{str(one.where).removeprefix(str(path))} !{one.why.detail}"
        if isinstance(one, SkippedPrompt)
        else f"{str(one.where).removeprefix(str(path))} {one.text}"
        for one in PromptFile(path)
    ]


def refusal(path: Path, *, strict: bool = False) -> str:
    with pytest.raises(PromptError) as caught:
        survey_files([PromptFile(path)], strict=strict)
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def test_a_text_file_has_a_prompt_a_line_and_empty_lines_are_none(tmp_path: Path) -> None:
    path = file(tmp_path, "p.txt", b"What is Python?\r\n\n   \n  Explain AI  \rlast")
    assert found(path) == [", line 1 What is Python?", ", line 4   Explain AI  ", ", line 5 last"]


def test_json_lines_are_read_one_by_one_and_bad_ones_are_named(tmp_path: Path) -> None:
    lines = ['{"prompt": "a"}', "", '{"prompt"', '{"text": "b"}', "[1]", '{"prompt": "c"}']
    path = file(tmp_path, "p.jsonl", "\n".join(lines))
    place = [line.partition(" !")[0] for line in found(path)]
    assert place == [", line 1 a", ", line 3", ", line 4 b", ", line 5", ", line 6 c"]
    assert "not a JSON object: Expecting ':' delimiter" in found(path)[1]


@pytest.mark.parametrize("line", [b'{"prompt": "caf\xe9"}', b'{"prompt": "a\0b"}', rb'{"prompt": "a\u0000b"}'])
def test_a_line_of_json_that_is_no_text_is_skipped_alone(line: bytes, tmp_path: Path) -> None:
    path = file(tmp_path, "p.jsonl", b'{"prompt": "a"}\n' + line + b'\n{"prompt": "b"}')
    first, bad, last = found(path)
    assert (first, last) == (", line 1 a", ", line 3 b")
    assert bad.startswith(", line 2 !it ")


@pytest.mark.parametrize("line", [b"caf\xe9", b"a\0b"])
def test_a_text_file_with_such_a_line_is_refused_whole(line: bytes, tmp_path: Path) -> None:
    """Its other lines would be read in the wrong encoding without looking so."""
    assert "line 2: it " in refusal(file(tmp_path, "p.txt", b"a\n" + line + b"\nb\n"))


def test_a_lone_surrogate_as_javascript_writes_it_is_read(tmp_path: Path) -> None:
    assert read_prompts(file(tmp_path, "p.jsonl", rb'{"prompt": "a\ud800b"}')) == [Prompt("a\ud800b")]


@pytest.mark.parametrize(
    "text",
    [
        '[{"prompt": "a"},\n {"text": "b"},\n 5, {"instruction": "c"}]',
        '[\n{"prompt": "a"}\n,{"text": "b"},5,{"instruction": "c"}\n]\n',
        '{"prompt": "a"}\n{"text":\n"b"}\n5\n{"instruction": "c"}',
    ],
)
def test_a_json_file_holds_a_list_of_objects_or_one_after_the_other(text: str, tmp_path: Path) -> None:
    places = [line.partition(" !")[0] for line in found(file(tmp_path, "p.json", text))]
    assert places == [", item 1 a", ", item 2 b", ", item 3", ", item 4 c"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("p.csv", b"x", "the ending .csv is unknown; known are .txt, .jsonl, .ndjson, .json, and --from takes logs"),
        ("p", b"x", "the ending (none) is unknown"),
        ("logs.db", b"x", "--from takes logs"),
        ("p.txt", b"", "holds no prompts"),
        ("p.txt", b"\n \n\r\n", "holds no prompts"),
        ("p.jsonl", b"\xef\xbb\xbf", "holds no prompts"),
        ("p.json", b"[]", "holds no prompts"),
        ("p.json", b'[{"prompt": "a"}, {"prompt": ', "item 2: not JSON"),
        ("p.json", b'[{"prompt": "a"}', "its list ends behind item 1 without a bracket: the file is cut short"),
        ("p.json", b'[{"prompt": "a"},', "its list ends behind item 1 without a bracket"),
        ("p.json", b"[", "its list ends behind item 0 without a bracket"),
        ("p.json", b'[{"prompt": "a"}] {"prompt": "b"}', "more comes behind its list"),
        ("p.json", b'[{"prompt": "caf\xe9"}]', "line 1: it is not UTF-8"),
    ],
    ids=range(13),
)
def test_a_file_that_cannot_be_used_is_refused_by_name(name: str, content: bytes, reason: str, tmp_path: Path) -> None:
    assert reason in refusal(file(tmp_path, name, content))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "directory.txt").mkdir()
    for name in ("nowhere.txt", "directory.txt", "x" * 300 + ".txt", "nowhere.json"):
        assert "cannot be read: " in refusal(tmp_path / name)
    with pytest.raises(PromptError, match="cannot be read: No such file"):
        survey_files([PromptFile(tmp_path / "logs.db", is_log=True)])


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    """It would be empty the second time, or nobody writes to it."""
    os.mkfifo(tmp_path / "p.jsonl")
    assert "a pipe or a device; " in refusal(tmp_path / "p.jsonl")
    with pytest.raises(PromptError, match="save it to a file first"):
        survey_files([PromptFile(tmp_path / "p.jsonl", is_log=True)])


def test_a_strict_reading_refuses_the_first_bad_line(tmp_path: Path) -> None:
    path = file(tmp_path, "p.jsonl", '{"prompt": "a"}\n{"prompt": \n{"promt": "b"}')
    assert refusal(path, strict=True).startswith(f"{path}, line 2: not a JSON object")
    assert len(survey_files([PromptFile(path)]).skipped) == 2
    assert "--strict" not in refusal(path, strict=True)  # which the benchmarks are, without such a flag
    with pytest.raises(PromptError, match="line 2"):
        read_prompts(path)


def test_a_survey_counts_what_was_done_to_the_prompts(tmp_path: Path) -> None:
    lines = [
        {"prompt": "a"},
        {"conversations": [{"from": "human", "value": "b"}, {"from": "gpt", "value": "x"}]},
        {"conversations": [{"from": "human", "value": "c"}]},
        {"instruction": "d", "output": "x"},
        {"messages": [{"role": "user", "content": "e"}], "tools": [{"type": "function", "function": {"name": "f"}}]},
        {"nothing": 1},
    ]
    path = file(tmp_path, "p.jsonl", "\n".join(map(json.dumps, lines)))
    counted = survey_files([PromptFile(path), PromptFile(path)])
    assert (counted.prompts, len(counted.skipped), counted.answers, counted.with_tools) == (10, 2, 4, 2)
    assert counted.to_json() == {"converted": {"ShareGPT": 4, "alpaca": 2}, "reference_answers": 4}
    assert counted.said() == [
        "converted to prompts: 4 of ShareGPT, 2 of alpaca",
        "answers left out, for the target answers anew: 4",
    ]
    assert survey_files([PromptFile(file(tmp_path, "q.txt", "a"))]).said() == []


def test_a_log_of_requests_may_have_any_name(tmp_path: Path) -> None:
    line = {"request": {"model": "x", "messages": [{"role": "user", "content": "hi"}]}, "response": {}}
    for name in ("proxy.log", "requests", "a.txt", "a.jsonl", "a.json"):
        path = file(tmp_path, name, json.dumps(line) + "\n" + json.dumps(line) + "\n")
        assert [one.text for one in PromptFile(path, is_log=True) if isinstance(one, Prompt)] == ["hi", "hi"]


@given(content=st.binary(max_size=200), name=st.sampled_from(["p.txt", "p.jsonl", "p.json"]), log=st.booleans())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_prompts_or_a_refusal(content: bytes, name: str, log: bool, tmp_path: Path) -> None:
    prompts = PromptFile(file(tmp_path, name, content), is_log=log)
    try:
        counted = survey_files([prompts])
    except PromptError:
        return
    assert counted.prompts == sum(isinstance(one, Prompt) for one in prompts)


def mixed(count: int) -> tuple[str, list[int]]:
    """Lines of all kinds, every tenth bad; and the numbers of these."""
    good = [
        lambda i: {"prompt": f"Question {i}"},
        lambda i: {"messages": [{"role": "user", "content": f"Question {i}"}, {"role": "assistant", "content": "x"}]},
        lambda i: {"conversations": [{"from": "human", "value": f"Question {i}"}, {"from": "gpt", "value": "x"}]},
        lambda i: {"instruction": f"Question {i}", "input": "", "output": "x"},
        lambda i: {"text": f"Question {i}"},
        lambda i: {"prompt": f"Question {i}", "completion": "x"},
        lambda i: {"request": {"model": "m", "messages": [{"role": "user", "content": f"Question {i}"}]}},
    ]
    bad = ['{"prompt": ', "[1, 2]", '{"promt": "x"}', '{"messages": []}', '{"prompt": "a\\u0000"}', "nonsense", "NaN"]
    bad.append('{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}')
    lines = [
        bad[i // 10 % len(bad)] if i % 10 == 0 else json.dumps(good[i % len(good)](i)) for i in range(1, count + 1)
    ]
    return "\n".join(lines), list(range(10, count + 1, 10))


def test_of_ten_thousand_mixed_lines_every_good_one_is_read_and_every_bad_one_named(tmp_path: Path) -> None:
    text, bad = mixed(10_000)
    path = file(tmp_path, "mixed.jsonl", text)
    counted = survey_files([PromptFile(path)])
    assert counted.prompts == 9000
    assert [one.where.number for one in counted.skipped] == bad
    asked = [one.text for one in PromptFile(path) if isinstance(one, Prompt)]
    assert asked == [f"Question {i}" for i in range(1, 10_001) if i % 10]


def test_memory_does_not_grow_with_the_number_of_lines(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        path = file(tmp_path, f"{count}.jsonl", mixed(count)[0])
        for _ in PromptFile(path):
            pass  # whatever is made once is made
        tracemalloc.start()
        try:
            for _ in PromptFile(path):
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(5000) < 1.5 * peak(500)
