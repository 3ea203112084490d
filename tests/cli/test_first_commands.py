"""The commands that everybody types first, in any order: each ends well, and no number says more than it measured."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest
from builders import make_record
from model_dirs import write_lora

from draftloop.data.record_lines import to_line
from draftloop.data_directory import DataDirectory
from draftloop.evaluation import latency as costs
from draftloop.models.pair import Pair

COLLECT = ["collect-data", "-p", "Describe the lion", "-p", "the target learns", "--max-tokens", "8", "--seed", "1"]
TRAIN = ["train", "--epochs", "1", "--rank", "2", "--answers", "0", "--proposals", "0"]
BENCHMARK = ["benchmark", "acceptance", "--num-draft-tokens", "2", "--rule", "rejection"]
FLATTERING = "seen in training: flattering"
NEW = "Describe the shark\nwhat the draft wants\n"


@pytest.fixture
def _trained(call_with_pair) -> None:
    assert call_with_pair(*COLLECT).code == 0
    assert call_with_pair(*TRAIN).code == 0


def test_collect_train_and_benchmark_end_with_0_and_what_is_measured_is_marked(call_with_pair) -> None:
    for command in (COLLECT, TRAIN, BENCHMARK):
        found = call_with_pair(*command)
        assert found.code == 0, found.err
        assert found.err.count(" · data data/\n") == 1
    assert f"\n{FLATTERING}: v0001 was trained on all 2 prompts\n" in found.out
    titles = [line.strip() for line in found.out.splitlines()].count(FLATTERING)
    assert titles == 2  # of each table
    assert "nothing is promoted yet, so v0001 is compared, the latest" in found.err
    assert "there is no held-out generation yet" in found.err

    values = call_with_pair(*BENCHMARK, "--json").json
    assert {row["adapter"] for row in values["results"]} == {"none", "v0001"}
    conditions = values["conditions"]
    assert (conditions["heldout"], conditions["mark"]) == (False, FLATTERING)
    assert (conditions["prompt_groups"], conditions["prompts_seen_in_training"]) == (2, 2)


def test_the_bare_draft_alone_is_not_flattered_by_prompts_for_training(call_with_pair) -> None:
    assert call_with_pair(*COLLECT).code == 0
    found = call_with_pair(*BENCHMARK)
    assert found.code == 0
    assert "\nnot held out: all 2 prompts are of the splits train or validation\n" in found.out
    assert FLATTERING not in found.out
    conditions = call_with_pair(*BENCHMARK, "--json").json["conditions"]
    assert (conditions["heldout"], conditions["mark"]) == (False, "not held out")
    assert (conditions["prompts_for_training"], conditions["prompts_seen_in_training"]) == (2, 0)


@pytest.mark.usefixtures("_trained")
def test_prompts_of_the_users_own_are_held_out_unless_one_is_near_what_was_trained_on(call_with_pair) -> None:
    Path("p.txt").write_text(NEW)
    own = [*BENCHMARK, "--prompts-file", "p.txt", "--max-tokens", "8"]
    assert call_with_pair(*own, "--json").json["conditions"]["heldout"] is True
    assert "held out" not in call_with_pair(*own).out
    Path("p.txt").write_text(f"{NEW}Could you describe a lion, please?\n")
    found = call_with_pair(*own)
    assert f"\n{FLATTERING}: v0001 was trained on 1 of 3 prompts\n" in found.out
    assert call_with_pair(*own, "--json").json["conditions"]["heldout"] is False
    bare = call_with_pair(*own, "--adapter", "none")
    assert "\nnot held out: 1 of 3 prompts is of the splits train or validation\n" in bare.out


@pytest.mark.usefixtures("_trained")
def test_where_generations_are_held_out_these_alone_are_measured_and_it_says_so(call_with_pair) -> None:
    prompts = [flag for i in range(40) for flag in ("-p", f"prompt {chr(0x4E00 + i)}")]
    assert call_with_pair(*COLLECT, *prompts).code == 0
    found = call_with_pair(*BENCHMARK, "--json")
    held_out = list(DataDirectory(Path("data")).log.records({"heldout"}))
    assert found.json["conditions"]["texts"] == len(held_out) > 0
    assert (found.json["conditions"]["heldout"], found.json["conditions"]["mark"]) == (True, None)
    assert "held-out" not in found.err


@pytest.mark.usefixtures("_trained")
def test_an_adapter_from_elsewhere_is_not_said_to_be_measured_blindly(call_with_pair, small_pair: Pair) -> None:
    write_lora(Path("mine"), small_pair.draft, amount=0.3)
    Path("p.txt").write_text(NEW)
    own = [*BENCHMARK, "--prompts-file", "p.txt", "--max-tokens", "8", "--adapter-path", "mine"]
    conditions = call_with_pair(*own, "--json").json["conditions"]
    assert (conditions["heldout"], conditions["mark"]) == (None, "not known to be held out")


@pytest.mark.usefixtures("_trained")
def test_gate_export_and_promotion_rest_on_none_of_what_was_seen(call_with_pair) -> None:
    """The benchmark measures it, whoever decides does not."""
    assert call_with_pair(*BENCHMARK).code == 0
    for command in (["retrain", "--dry-run"], ["retrain"]):
        waiting = call_with_pair(*command)
        assert waiting.code == 12
        assert "v0001 waits for the gate, with 0 of 12 held-out prompts" in waiting.out
    data = DataDirectory(Path("data"))
    assert data.verdicts.of("v0001") is None
    exported = call_with_pair("adapters", "export", "v0001", "--to", "out", "--json").json
    assert (exported["measured"], exported["not_measured"]) == (None, "no held-out generation")
    assert data.registry.champion() is None


def test_a_version_of_another_draft_is_not_compared_unless_it_is_asked_for(call_with_pair, call) -> None:
    embedded = ["--max-tokens", "8"]
    assert call("collect-data", "-p", "Return the", *embedded).code == 0
    assert call(*TRAIN).code == 0
    assert call_with_pair(*COLLECT).code == 0
    found = call_with_pair(*BENCHMARK)
    assert found.code == 0, found.err
    assert "no adapter to compare with" in found.err
    assert call_with_pair(*BENCHMARK, "--adapter", "latest").code == 2


@pytest.mark.usefixtures("_trained")
def test_a_bare_draft_that_was_chosen_stays_the_only_one(call_with_pair, call) -> None:
    for name in ("latest", "none"):
        assert call("adapters", "promote", name).code == 0
    found = call_with_pair(*BENCHMARK, "--json")
    assert {row["adapter"] for row in found.json["results"]} == {"none"}


def test_held_out_generations_of_another_target_keep_nobody_from_a_first_number(call_with_pair) -> None:
    path = DataDirectory(Path("data")).log.path
    path.parent.mkdir(parents=True)
    path.write_bytes(b"".join(to_line(make_record(prompt=f"old {i}", split="heldout")) for i in "ab"))
    assert call_with_pair(*COLLECT).code == 0
    found = call_with_pair(*BENCHMARK, "--json")
    assert (found.code, found.json["conditions"]["texts"], found.json["conditions"]["heldout"]) == (0, 2, False)
    assert found.json["conditions"]["left_out"] == {"another target or tokenizer": 2}


@pytest.mark.usefixtures("_trained")
def test_speed_is_measured_on_the_first_prompts_too_and_marked(call_with_pair, monkeypatch) -> None:
    monkeypatch.setattr(costs, "CAREFUL", costs.QUICK)
    speed = ["benchmark", "speed", "--num-draft-tokens", "1", "--max-tokens", "8", "--repeats", "1"]
    found = call_with_pair(*speed)
    assert found.code == 0, found.err
    assert "\nnot held out: all 2 prompts are of the splits train or validation\n" in found.out
    values = call_with_pair(*speed, "--adapter", "latest", "--json").json
    assert (values["heldout"], values["mark"], values["prompts_seen_in_training"]) == (False, FLATTERING, 2)


@pytest.mark.parametrize("order", list(permutations(["collect", "train", "benchmark"])), ids=" ".join)
def test_in_every_order_each_ends_with_its_code_and_one_line_where_it_could_not(
    order: tuple[str, ...], call_with_pair
) -> None:
    commands = {"collect": COLLECT, "train": TRAIN, "benchmark": BENCHMARK}
    said = {"train": "nothing to do: ", "benchmark": "error: no generations in "}
    has_collected = False
    for name in (*order, *order):
        has_collected |= name == "collect"
        found = call_with_pair(*commands[name])
        expected = 0 if has_collected else {"train": 10, "benchmark": 2}[name]
        assert found.code == expected, (name, found)
        if not has_collected:
            assert (found.out, found.err.count("\n"), found.err.startswith(said[name])) == ("", 1, True)
            assert not Path("data").exists()


def test_collecting_the_same_again_does_nothing_and_says_so(call_with_pair) -> None:
    assert call_with_pair(*COLLECT).code == 0
    before = Path("data/failures/failures.jsonl").read_bytes()
    found = call_with_pair(*COLLECT)
    assert found.code == 0
    assert "2 already collected" in found.out
    assert Path("data/failures/failures.jsonl").read_bytes() == before
