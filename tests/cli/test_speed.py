"""`benchmark speed`: every way to decode in one table, an advice, and that `generate` goes by it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from draftloop.evaluation import latency as costs

WAYS = [*["mlx-lm"] * 3, *["draftloop"] * 7]
SHORT = ["benchmark", "speed", "--num-draft-tokens", "1,3", "--max-tokens", "12", "--repeats", "2"]


@pytest.fixture(autouse=True)
def _little_care(monkeypatch: pytest.MonkeyPatch, _place: None) -> None:
    monkeypatch.setattr(costs, "CAREFUL", costs.QUICK)
    Path("data").mkdir()


@pytest.fixture
def prompts() -> list[str]:
    Path("p.txt").write_text("the target\nlearns\n")
    return ["--prompts-file", "p.txt"]


def test_every_way_is_there_and_each_ratio_says_of_what(call_with_pair, prompts: list[str]) -> None:
    found = call_with_pair(*SHORT, *prompts, "--json").json
    rows = found["rows"]
    assert [row["way"]["by"] for row in rows] == WAYS
    ours = [(row["way"]["rule"], row["way"]["num_draft_tokens"]) for row in rows if row["way"]["by"] == "draftloop"]
    fixed = [(rule, k) for rule in ("rejection", "block") for k in (1, 3)]
    assert ours == [(None, 0), *fixed, ("rejection", None), ("block", None)]
    assert all(0 < row["tokens"] <= 2 * 24 for row in rows)  # of both passes that count
    assert all(row["tokens_per_second"] > 0 and row["speed_up"] > 0 for row in rows)
    assert [row["speed_up"] for row in rows if row["way"]["num_draft_tokens"] == 0] == [1.0, 1.0]
    assert [row["length"] is None for row in rows] == [row["way"]["num_draft_tokens"] == 0 for row in rows]
    assert [row["forecast"] is not None for row in rows] == [False] * 4 + [True] * 4 + [False] * 2
    assert [row["over_stock"] is not None for row in rows] == [False] * 3 + [True] * 5 + [False] * 2
    fastest = max(rows[3:8], key=lambda row: row["speed_up"])
    assert found["advice"]["num_draft_tokens"] == fastest["way"]["num_draft_tokens"]
    assert found["advice"]["speed_up"] == fastest["speed_up"] >= 1.0
    assert (found["prompts"], found["repeats"], found["sampler"]["temperature"]) == (2, 2, 0.8)


def test_what_was_found_is_kept_where_generate_finds_it(call_with_pair, prompts: list[str]) -> None:
    report = call_with_pair(*SHORT, *prompts, "--json").json
    before = Path("data/costs.json").read_bytes()
    (known,) = json.loads(before).values()
    advice = report["advice"]
    assert known == {name: report[name] for name in ("costs", "advice", "experience")}
    assert all(one["judged"][0] + one["plain_steps"] > 0 for one in known["experience"].values())
    assert known["experience"].keys() == {"rejection", "block"}
    said = call_with_pair("generate", "the target", "--max-tokens", "10", "--seed", "1", "--json").json
    assert said["rule"] == advice["rule"]
    assert Path("data/costs.json").read_bytes() == before  # nothing was measured again
    call_with_pair(*SHORT, *prompts, "--temp", "0")  # says nothing of a rule above 0
    known, greedy = json.loads(Path("data/costs.json").read_bytes()).values()
    assert (known["advice"]["rule"], greedy["advice"]["rule"]) == (advice["rule"], None)
    assert call_with_pair("generate", "the target", "--max-tokens", "10", "--json").code == 0


@pytest.mark.slow
def test_a_run_that_compared_no_rules_leaves_what_is_known_of_them(
    call_with_pair, prompts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = call_with_pair(*SHORT, *prompts, "--json").json["advice"]["rule"]
    call_with_pair(*SHORT, *prompts, "--rule", "match")
    (known,) = json.loads(Path("data/costs.json").read_bytes()).values()
    assert known["advice"]["rule"] == rule
    monkeypatch.setenv("DRAFTLOOP_SPECULATIVE_MAX_DRAFT_TOKENS", "12")
    call_with_pair("generate", "the target", "--max-tokens", "4")  # measures more lengths
    (known,) = json.loads(Path("data/costs.json").read_bytes()).values()
    assert len(known["costs"]["t_target"]) == 13
    assert known["advice"]["rule"] == rule


def test_where_nothing_can_be_kept_the_table_is_printed_all_the_same(call_with_pair, prompts: list[str]) -> None:
    Path("data/costs.json").mkdir(parents=True)  # nothing can be written over it
    found = call_with_pair(*SHORT, *prompts)
    assert (found.code, found.out.count("draftloop")) == (0, 7)
    assert "`generate` cannot use this" in found.err


def test_a_round_of_mlx_lm_that_the_end_cut_counts_as_one(call, prompts: list[str]) -> None:
    same = ["--model", "embedded:draft", "--draft-model", "embedded:draft"]  # everything is kept
    found = call("benchmark", "speed", *same, *prompts, *SHORT[2:4], "--max-tokens", "6", "--temp", "0", "--json").json
    lengths = {row["way"]["num_draft_tokens"]: row["length"] for row in found["rows"] if row["way"]["by"] == "mlx-lm"}
    assert lengths == {0: None, 1: 2.0, 3: 3.0}  # rounds of 2, 2 and 2; of 4 and 2


def test_text_is_a_table_and_advice(call_with_pair, prompts: list[str]) -> None:
    found = call_with_pair(*SHORT, *prompts, "--temp", "0")
    assert found.code == 0
    assert found.out.startswith("2 prompts, 12 tokens at most, adapter none; a draft step ")
    assert found.out.count("greedy") == 3
    *_, before, last = found.out.splitlines()
    off = before.startswith("leave speculation off") and last.startswith(
        ("it would take about ", "it would not be faster")
    )
    assert off or last.startswith("fastest on this machine: K = ")


def test_one_pass_has_no_spread(call_with_pair, prompts: list[str]) -> None:
    once = [*SHORT[:-1], "1", "--temp", "0", *prompts]
    assert all(row["spread"] is None for row in call_with_pair(*once, "--json").json["rows"])
    assert "%" not in call_with_pair(*once).out


def test_held_out_prompts_of_the_log_are_the_default(call_with_pair) -> None:
    Path("many.txt").write_text("".join(f"prompt {'ab' * i}\n" for i in range(25)))
    call_with_pair("collect-data", "--prompts-file", "many.txt", "--max-tokens", "4")
    found = call_with_pair(*SHORT, "--limit", "2", "--json").json
    assert (found["status"], found["prompts"]) == ("ok", 2)


def test_without_prompts_it_says_where_they_come_from(call_with_pair) -> None:
    found = call_with_pair(*SHORT)
    assert (found.code, found.err.count("\n")) == (2, 1)
    assert "give --prompts-file" in found.err
