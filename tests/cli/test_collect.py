"""`collect-data`: prompts in, a summary out, and a run that a signal stops and the same command goes on with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from model_dirs import CHAT_TEMPLATE, edit_json
from mortal import HANGS

from draftloop.data.log import FailureLog
from draftloop.data.teacher_top_k import decode_top_k
from draftloop.data_directory import DataDirectory

LOG = Path("data/failures/failures.jsonl")
SHORT = ["--max-tokens", "8"]
FIELDS = {
    "status",
    "prompts",
    "generations",
    "tokens",
    "acceptance_rate",
    "acceptance_length",
    "failures",
    "skipped",
    "tokens_per_second",
}


def test_prompts_of_flags_and_file_are_logged_and_summed_up(call_with_pair) -> None:
    Path("p.txt").write_text("Explain AI\n\nand more\n")
    found = call_with_pair("collect-data", "-p", "What is Python?", "--prompts-file", "p.txt", *SHORT, "--source", "me")
    assert found.code == 0
    records = list(FailureLog(LOG).records())
    assert [record.prompt for record in records] == ["What is Python?", "Explain AI", "and more"]
    assert {(record.source, record.split) for record in records} == {("me", "train")}
    assert {len(record.target_output) for record in records} == {8}
    lines = dict(line.split(None, 1) for line in found.out.splitlines() if line.startswith(("prompts", "tokens ")))
    assert lines == {"prompts": "3", "tokens": "24"}
    assert found.err.splitlines()[-1].startswith("collecting 3/3 ")
    assert "Explain" not in found.out + found.err


def test_json_is_one_object_and_prompts_that_cannot_be_used_are_notes(call_with_pair) -> None:
    found = call_with_pair("collect-data", "-p", "the target", "-p", " ", *SHORT, "--json")
    assert found.code == 0
    assert found.json.keys() >= FIELDS
    assert (found.json["status"], found.json["skipped"]) == ("ok", {"empty": 1})
    assert "skipped: prompt 2 (''): empty, no text\n" in found.err


def test_the_same_command_again_has_nothing_to_do_and_fresh_does_it_again(call_with_pair) -> None:
    command = ["collect-data", "-p", "the target", *SHORT, "--json"]
    assert [call_with_pair(*command, *more).json["generations"] for more in ([], [], ["--fresh"])] == [1, 0, 1]
    assert call_with_pair(*command).json["skipped"] == {"already collected": 1}


def test_a_limit_takes_the_next_ones_each_time(call_with_pair) -> None:
    Path("p.jsonl").write_text("".join(json.dumps({"prompt": f"prompt {'x' * i}"}) + "\n" for i in range(5)))
    command = ["collect-data", "--prompts-file", "p.jsonl", "--limit", "2", *SHORT, "--json"]
    assert [call_with_pair(*command).json["generations"] for _ in range(4)] == [2, 2, 1, 0]


def test_sampler_rule_and_draft_length_of_the_flags_are_in_the_record(call_with_pair) -> None:
    flags = ["--temp", "0.5", "--top-p", "0.9", "--min-p", "0.01", "--top-k", "9", "--num-draft-tokens", "2"]
    found = call_with_pair("collect-data", "-p", "a", *flags, "--rule", "match", "--seed", "6", *SHORT, "--json")
    (record,) = FailureLog(LOG).records()
    s = record.sampler
    assert (s.temperature, s.top_p, s.min_p, s.top_k) == (0.5, 0.9, 0.01, 9)
    assert (record.rule, record.num_draft_tokens, record.run_seed) == ("match", 2, 6)
    assert found.json["rule"] == "match"


def test_the_targets_distributions_are_kept_beside_the_log_unless_asked_not_to(call_with_pair) -> None:
    data = DataDirectory(Path("data"))
    widths = []
    for flags in ([], ["--teacher-top-k", "3"], ["--teacher-top-k", "0"]):
        assert call_with_pair("collect-data", "-p", "a", "--fresh", *flags, *SHORT).code == 0
        *_, record = data.log.records()
        widths.append(record.teacher and decode_top_k(data.blobs.read(record.teacher)).k)
    assert widths == [32, 3, None]
    assert data.blobs.path == LOG.with_name("teacher.bin")
    assert data.blobs.path.stat().st_mode & 0o777 == 0o600


def test_the_log_is_its_owners_alone(call_with_pair) -> None:
    call_with_pair("collect-data", "-p", "a", *SHORT)
    assert LOG.stat().st_mode & 0o777 == 0o600


def test_a_prompt_that_is_no_utf_8_is_logged_as_it_is(call_with_pair) -> None:
    assert call_with_pair("collect-data", "-p", "a\udcff", *SHORT, "--json").code == 0
    assert [record.prompt for record in FailureLog(LOG).records()] == ["a\udcff"]


@pytest.fixture
def many() -> list[str]:
    """A command line with more prompts than anybody waits for."""
    Path("many.txt").write_text("".join(f"prompt {i}\n" for i in range(3_000)))
    return ["collect-data", "--prompts-file", "many.txt", "--max-tokens", "16", "--json"]


@pytest.mark.parametrize(
    ("number", "way"), [(signal.SIGTERM, []), (signal.SIGINT, []), (signal.SIGINT, ["--live"])], ids=str
)
def test_a_signal_keeps_what_was_acknowledged_and_the_same_command_goes_on(
    number: signal.Signals, way: list[str], many: list[str], call_with_pair, pair_flags: list[str], root: Path
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    with subprocess.Popen(
        [sys.executable, "-m", "draftloop", *many, *way, *pair_flags],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        before = wait_for_lines(process, 3)
        process.send_signal(number)
        out, err = process.communicate(timeout=HANGS)
    assert process.returncode == 130
    # One that has stopped before it could be answered says only that.
    *answer, last = (line for line in err.splitlines() if " · data " not in line)
    said = ("stopping", "stopping: what is logged is kept")  # the former by one that has just stopped
    assert answer in ([], *([f"{one}; Ctrl-C again stops at once"] for one in said))
    assert last == "stopped: everything logged so far is kept; the same command goes on from here"
    found = json.loads(out)  # one object, not two
    assert (found["status"], found["schema_version"]) == ("interrupted", 1)
    log = FailureLog(LOG)
    records = list(log.records())
    assert LOG.read_bytes().startswith(before)
    assert not log.damage
    assert 3 <= len(records) == found["generations"] < 3_000

    again = call_with_pair(*many, *way, "--limit", "2").json
    assert (again["status"], again["generations"]) == ("ok", 2)
    skipped = again["skipped"].get("already collected", 0)  # before the second new one
    assert skipped <= len(records)  # in a batch some later ones were done before, or, early on, none but later ones
    prompts = [record.prompt for record in FailureLog(LOG).records()]
    assert len(set(prompts)) == len(prompts) == len(records) + 2
    if way:
        assert skipped == len(records)
        assert prompts == [f"prompt {i}" for i in range(len(records) + 2)]


def wait_for_lines(process: subprocess.Popen[str], count: int) -> bytes:
    """The log as soon as it has so many whole lines."""
    deadline = time.monotonic() + HANGS
    while time.monotonic() < deadline:
        data = LOG.read_bytes() if LOG.exists() else b""
        if data.count(b"\n") >= count:
            return data[: data.rindex(b"\n") + 1]
        try:
            process.wait(0.02)
        except subprocess.TimeoutExpired:
            continue
        break
    process.kill()
    raise AssertionError(f"no {count} records: {process.communicate()}")


def test_a_chat_template_that_changed_overnight_is_named_and_what_was_logged_stays_in_use(
    call, small_models, tmp_path: Path
) -> None:
    for role in ("target", "draft"):
        shutil.copytree(getattr(small_models, role), tmp_path / role)
    pair = ["--model", str(tmp_path / "target"), "--draft-model", str(tmp_path / "draft")]
    command = ["collect-data", "-p", "the target", *SHORT, *pair]
    template = CHAT_TEMPLATE
    assert "chat template" not in call(*command).err

    def overnight(role: str) -> None:
        nonlocal template
        template += " "
        edit_json(tmp_path / role / "tokenizer_config.json", chat_template=template)

    overnight("draft")
    found = call(*command, "--json")
    assert (found.json["generations"], found.json["chat_template_changed"]) == (0, None)
    assert found.json["skipped"] == {"already collected": 1}
    overnight("target")
    status = call("status", "--json", *pair).json
    assert (status["other_pairs"], status["generations"]) == (0, 1)
    assert status["chat_template_changed"] in call("status", *pair).err
    plain = call(*command, "--no-chat-template")  # which asks no template
    assert "chat template" not in plain.err
    found = call(*command)
    assert f"{status['chat_template_changed']}\n" in found.err
    assert "generations        1" in found.out
    assert "chat template" not in call(*command).err + call("status", *pair).err


def test_what_a_lower_max_tokens_had_cut_is_collected_anew(call_with_pair) -> None:
    command = ["collect-data", "-p", "the target", "--json", "--temp", "0"]
    assert [
        call_with_pair(*command, "--max-tokens", most, *more).json["generations"]
        for most, more in (("4", []), ("4", []), ("8", []), ("8", ["--live"]), ("6", []), ("9", ["--live"]))
    ] == [1, 0, 1, 0, 0, 1]
