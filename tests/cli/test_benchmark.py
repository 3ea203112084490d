"""`benchmark acceptance`: rows, a paired comparison and their conditions, from logged texts or from prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from builders import make_record
from model_dirs import write_lora

from draftloop.data.log import FailureLog
from draftloop.data.record_lines import to_line
from draftloop.data.usable import FOREIGN_ID, NO_OUTPUT
from draftloop.models.pair import Pair
from draftloop.registry.registry import Registry

SHORT = ["--prompts-file", "p.txt", "--max-tokens", "10", "--num-draft-tokens", "1,3"]
ROW = {
    "adapter",
    "rule",
    "num_draft_tokens",
    "acceptance_per_position",
    "acceptance_rate",
    "acceptance_length",
    "ci_low",
    "ci_high",
}


@pytest.fixture(autouse=True)
def _prompts(_place: None) -> None:
    Path("p.txt").write_text("the target\nwhat the draft wants\nlearns\n")


@pytest.fixture
def version(small_pair: Pair) -> str:
    """A version of the small draft, the champion."""
    registry = Registry(Path("data/adapters"))
    fields = {"pair": small_pair.identity}
    registry.create(lambda path: write_lora(path, small_pair.draft, amount=0.3) and None, fields)
    registry.promote("v0001")
    return "v0001"


def ends_of_progress(err: str) -> list[str]:
    """The last line of each piece of work: on a slow machine there are lines before it."""
    last = {line.split()[0]: line for line in err.splitlines()}
    return list(last.values())


def test_json_has_rows_a_comparison_and_conditions(call_with_pair, version: str) -> None:
    found = call_with_pair("benchmark", "acceptance", *SHORT, "--json")
    assert found.code == 0
    values = found.json
    assert values.keys() >= {"status", "results", "comparison", "conditions"}
    assert all(set(row) == ROW for row in values["results"])
    assert {(row["adapter"], row["rule"], row["num_draft_tokens"]) for row in values["results"]} == {
        (name, rule, k) for name in ("none", version) for rule in ("rejection", "block", "match") for k in (1, 3)
    }
    assert len(values["results"]) == 12
    for change in values["comparison"]:
        assert change.keys() >= {"rule", "num_draft_tokens", "delta_acceptance_length", "ci_low", "ci_high"}
    conditions = values["conditions"]
    assert (conditions["adapter"], conditions["texts"], conditions["tokens"]) == (version, 3, 30)
    assert values["live"] == []
    assert ends_of_progress(found.said) == ["generating 3/3", "scoring 18/18"]  # texts, rules, and two drafts


@pytest.mark.parametrize(
    ("adapter", "names"), [("none", {"none"}), ("latest", {"none", "v0001"}), ("v0001", {"none", "v0001"})]
)
def test_the_adapter_is_chosen_by_name(adapter: str, names: set[str], call_with_pair, version: str) -> None:
    found = call_with_pair("benchmark", "acceptance", *SHORT, "--adapter", adapter, "--json").json
    assert {row["adapter"] for row in found["results"]} == names
    assert len(found["comparison"]) == (6 if len(names) == 2 else 0)


def test_an_adapter_directory_called_none_is_compared_with_the_bare_draft(
    call_with_pair, small_pair: Pair, tmp_path: Path
) -> None:
    write_lora(Path("none"), small_pair.draft, amount=0.3)
    found = call_with_pair("benchmark", "acceptance", *SHORT, "--adapter-path", "./none", "--json").json
    assert {row["adapter"] for row in found["results"]} == {"none", str(tmp_path / "none")}
    assert any(change["delta_acceptance_length"] != 0 for change in found["comparison"])


def test_text_is_tables_on_stdout(call_with_pair, version: str) -> None:
    found = call_with_pair("benchmark", "acceptance", *SHORT, "--live")
    assert found.code == 0
    assert found.out.startswith("3 generations of 3 prompts, 30 tokens; intervals: 95% cluster bootstrap")
    for title in ("acceptance per position", "adapter minus bare draft, paired", "decoded live"):
        assert title in found.out
    assert found.out.count("v0001") == 12
    assert ends_of_progress(found.said) == ["generating 3/3", "scoring 18/18", "decoding 72/72"]


def test_without_an_adapter_it_says_that_there_is_nothing_to_compare(call_with_pair) -> None:
    found = call_with_pair("benchmark", "acceptance", *SHORT)
    assert found.code == 0
    assert "minus" not in found.out
    assert "no adapter to compare with" in found.err


def test_live_rows_stand_beside_their_estimate(call_with_pair) -> None:
    found = call_with_pair("benchmark", "acceptance", *SHORT, "--temp", "0", "--live", "--json").json
    assert [(row["rule"], row["num_draft_tokens"]) for row in found["live"]] == [("greedy", 1), ("greedy", 3)]
    for row, estimated in zip(found["live"], found["results"], strict=True):
        assert row["acceptance_length"] == pytest.approx(row["estimated_acceptance_length"])
        assert row["acceptance_length"] == pytest.approx(estimated["acceptance_length"])
        assert min(row["tokens_per_second"], row["plain_tokens_per_second"]) > 0


def test_prompts_that_cannot_be_used_are_notes(call_with_pair) -> None:
    Path("p.jsonl").write_text('{"prompt": ""}\n{"promt": "x"}\n{"instruction": "learns"}\n{"prompt": "more"}\n')
    arguments = ["--prompts-file", "p.jsonl", "--max-tokens", "5", "--num-draft-tokens", "2", "--limit", "2", "--json"]
    found = call_with_pair("benchmark", "acceptance", *arguments, "--chat-template-args", '{"a": 1}')
    assert found.json["conditions"]["texts"] == 1  # the limit counts prompts
    assert found.json["conditions"]["chat_template_args"] == {"a": 1}
    assert "converted to prompts: 1 of alpaca\n" in found.err
    assert "skipped: p.jsonl, line 2: bad line, expected an object with one of prompt" in found.err
    assert "skipped: p.jsonl, line 1: empty, no text\n" in found.err


@pytest.mark.parametrize("kind", ["acceptance", "speed"])
def test_a_strict_benchmark_refuses_a_file_with_a_bad_line_before_anything_is_loaded(kind: str, call) -> None:
    Path("p.jsonl").write_text('{"prompt": "a"}\n{"promt": "x"}\n')
    found = call("benchmark", kind, "--prompts-file", "p.jsonl", "--strict", "--model", "nowhere")
    assert (found.code, found.err.startswith("error: p.jsonl, line 2: expected an object")) == (2, True)


def test_by_default_the_logged_held_out_generations_are_measured(call_with_pair) -> None:
    Path("many.txt").write_text("".join(f"prompt {'ab' * i}\n" for i in range(25)))
    call_with_pair("collect-data", "--prompts-file", "many.txt", "--max-tokens", "4")
    held_out = list(FailureLog(Path("data/failures/failures.jsonl")).records({"heldout"}))
    assert len(held_out) >= 2
    found = call_with_pair("benchmark", "acceptance", "--num-draft-tokens", "2", "--json").json
    assert found["conditions"]["texts"] == len(held_out)
    assert found["conditions"]["tokens"] == sum(len(record.target_output) for record in held_out)
    limited = call_with_pair("benchmark", "acceptance", "--num-draft-tokens", "2", "--limit", "1", "--json").json
    assert limited["conditions"]["texts"] == 1
    assert limited["results"][0]["ci_low"] is None

    log = Path("data/failures/failures.jsonl")
    log.write_bytes(b"damaged\n" + log.read_bytes())
    damaged = call_with_pair("benchmark", "acceptance", "--num-draft-tokens", "2", "--json")
    assert damaged.json["results"] == found["results"]
    assert f"damaged: {log}, line 1: " in damaged.err

    refused = call_with_pair("benchmark", "acceptance", "--rule", "greedy", "--json")
    assert (refused.code, refused.json["status"]) == (2, "error")
    assert "rule greedy does not fit outputs that were sampled above temperature 0" in refused.json["error"]


def test_a_rule_in_the_configuration_does_not_stand_in_the_way(call_with_pair, pair_flags) -> None:
    Path("my.yaml").write_text("speculative: {rule: rejection}\n")
    found = call_with_pair("-c", "my.yaml", "benchmark", "acceptance", *SHORT, "--temp", "0", "--json")
    assert found.code == 0
    assert {row["rule"] for row in json.loads(found.out)["results"]} == {"greedy"}


def test_generations_that_the_pair_cannot_be_measured_on_are_left_out_counted_and_named(
    call_with_pair, small_pair: Pair
) -> None:
    usable = [{"prompt": f"prompt {name}", "prompt_tokens": (5, 6)} for name in "ab"]
    unusable = [{"target_output": (), "draft_output": ()}, {"prompt_tokens": (1, small_pair.width)}]
    path = Path("data/failures/failures.jsonl")
    path.parent.mkdir(parents=True)
    path.write_bytes(
        b"".join(to_line(make_record(pair=small_pair.identity, split="heldout", **one)) for one in usable + unusable)
    )
    found = call_with_pair("benchmark", "acceptance", "--adapter", "none", "--num-draft-tokens", "2", "--json")
    assert (found.code, found.json["conditions"]["texts"]) == (0, 2)
    assert found.json["conditions"]["left_out"] == {NO_OUTPUT: 1, FOREIGN_ID: 1}
    assert f"left out: 1 ({NO_OUTPUT}), 1 ({FOREIGN_ID})\n" in found.err
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[2:]))
    found = call_with_pair("benchmark", "acceptance", "--adapter", "none")
    assert (found.code, found.out) == (2, "")
    assert f"none of 2 held-out generations can be used: 1 ({NO_OUTPUT}), 1 ({FOREIGN_ID})" in found.err
