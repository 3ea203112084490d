"""`generate`: text on stdout, everything else on stderr, and an object with fixed names for other programs."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from model_dirs import write_lora

from draftloop.decoding import generate as text
from draftloop.decoding.draft_length import Experience, LatencyProfile
from draftloop.evaluation import latency as costs
from draftloop.evaluation.latency_profiles import Advice, LatencyProfiles, StoredProfile
from draftloop.models.pair import Pair

SUCCESS = {
    "status",
    "prompt",
    "prompt_tokens",
    "text",
    "tokens",
    "acceptance_rate",
    "acceptance_length",
    "tokens_per_second",
}
FAILURE = {"status", "prompt", "error"}
SHORT = ["--max-tokens", "10", "--num-draft-tokens", "4"]


def test_text_goes_to_stdout_and_the_numbers_to_stderr(call_with_pair, small_pair: Pair) -> None:
    found = call_with_pair("generate", "the target", *SHORT, "--temp", "0")
    expected = call_with_pair("generate", "the target", *SHORT, "--temp", "0", "--json").json
    assert found.code == 0
    assert found.out == expected["text"] + "\n"
    assert found.said.startswith("10 tokens, ")
    assert found.said.count("\n") == 1


def test_json_has_the_fields_that_others_read(call_with_pair, small_pair: Pair) -> None:
    found = call_with_pair("generate", "the target", *SHORT, "--json")
    assert (found.code, found.said) == (0, "")
    values = found.json
    assert values.keys() >= SUCCESS
    assert (values["status"], values["prompt"]) == ("ok", "the target")
    assert values["text"] == small_pair.tokenizer.decode(values["tokens"])
    assert values["prompt_tokens"] == len(small_pair.tokenizer.encode("[user]the target\n[assistant]"))
    assert 1 <= values["acceptance_length"] <= 5
    assert 0 <= values["acceptance_rate"] <= 1
    assert values["tokens_per_second"] > 0
    assert (values["adapter"], values["rule"], values["finish"]) == (None, "rejection", "length")


def test_a_missing_adapter_is_an_error_with_the_fields_that_others_read(call_with_pair) -> None:
    found = call_with_pair("generate", "the target", "--adapter-path", "/nowhere/at/all", "--json")
    assert found.code == 2
    assert found.json.keys() >= FAILURE
    assert (found.json["status"], found.json["prompt"]) == ("error", "the target")
    assert "/nowhere/at/all" in found.json["error"]
    assert found.err == f"error: {found.json['error']}\n"


@pytest.mark.parametrize(
    "first", [["--temp", "warm", "say it"], ["say it", "--temp", "warm"], ["say it", "--temp", "99"]]
)
def test_the_prompt_is_in_the_error_wherever_the_mistake_is(first: list[str], call) -> None:
    assert call("generate", *first, "--json").json["prompt"] == "say it"


def test_the_same_seed_gives_the_same_text_and_another_seed_another(call_with_pair) -> None:
    texts = [call_with_pair("generate", "read", *SHORT, "--seed", seed).out for seed in ("1", "1", "2")]
    assert texts[0] == texts[1] != texts[2]


def test_the_chat_template_can_be_switched_off(call_with_pair, small_pair: Pair) -> None:
    found = call_with_pair("generate", "the target", *SHORT, "--no-chat-template", "--json").json
    assert found["prompt_tokens"] == len(small_pair.tokenizer.encode("the target"))


def test_an_adapter_directory_is_used_and_named_by_where_it_lies(call_with_pair, small_pair: Pair, tmp_path) -> None:
    """Even one whose name means something else."""
    write_lora(tmp_path / "none", small_pair.draft, amount=5.0)
    greedy = ["generate", "the target", "--max-tokens", "16", "--num-draft-tokens", "4", "--temp", "0", "--json"]
    bare = call_with_pair(*greedy, "--adapter", "none").json
    adapted = call_with_pair(*greedy, "--adapter-path", "./none").json
    assert (bare["adapter"], adapted["adapter"]) == (None, str(tmp_path / "none"))
    assert bare["text"] == adapted["text"]  # the target's own, whatever the draft proposes
    assert adapted["acceptance_length"] < bare["acceptance_length"]


@pytest.mark.parametrize(("given", "read"), [(b"the target", "the target"), (b"\xffthe", "\ufffdthe")])
def test_a_dash_reads_the_prompt_from_stdin(given: bytes, read: str, call_with_pair, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given), "utf-8"))
    assert call_with_pair("generate", "-", *SHORT, "--json").json["prompt"] == read


@pytest.mark.parametrize("prompt", ["a\udcffb", "\ufeffa", "a\0b", "\u202eשלום"], ids=ascii)
def test_odd_text_comes_back_as_it_was_given(prompt: str, call_with_pair) -> None:
    found = call_with_pair("generate", prompt, *SHORT, "--json")
    assert found.code == 0
    assert found.out.isascii()
    assert json.loads(found.out)["prompt"] == prompt


def test_the_embedded_pair_is_the_default(call) -> None:
    found = call("generate", "Return the", *SHORT, "--json").json
    assert found["status"] == "ok"
    assert found["text"].isprintable() or "\n" in found["text"]


@pytest.fixture
def _data(_place: None) -> None:
    """A data directory for what is found out to be kept in."""
    Path("data").mkdir()


@pytest.mark.usefixtures("_data")
def test_without_a_fixed_length_it_measures_what_pays_once_and_remembers(call_with_pair, small_pair: Pair) -> None:
    short = ["generate", "the target", "--max-tokens", "40", "--temp", "0", "--json"]
    fixed = call_with_pair(*short, "--num-draft-tokens", "2").json
    first = call_with_pair(*short)
    known = known_costs()
    again = call_with_pair(*short)
    assert first.json["tokens"] == again.json["tokens"] == fixed["tokens"]  # greedy: whatever is drafted
    assert len(known["costs"]["t_target"]) == 9
    assert known_costs()["costs"] == known["costs"]


@pytest.fixture
def _drafting_pays(monkeypatch: pytest.MonkeyPatch, _data: None) -> None:
    """By costs that are not of this machine, where it may or may not."""
    monkeypatch.setattr(
        costs, "measure_latency", lambda *_, **_named: LatencyProfile(0.001, tuple(0.1 + 0.001 * k for k in range(9)))
    )


@pytest.mark.usefixtures("_drafting_pays")
def test_a_text_begins_with_what_the_texts_before_it_taught(call_with_pair) -> None:
    one = ["generate", "the target", "--max-tokens", "40"]
    rounds = []
    for _ in range(2):
        call_with_pair(*one)
        rounds.append(known_costs()["experience"]["rejection"]["judged"][0])
    assert 0 < rounds[0] < rounds[1]
    call_with_pair(*one, "--temp", "0")  # under a key of its own: greedy steps take other times
    assert [list(known["experience"]) for known in all_known_costs()] == [["rejection"], ["greedy"]]


@pytest.mark.usefixtures("_drafting_pays")
@pytest.mark.parametrize(("flags", "environment"), [(["--seed", "0"], None), ([], "7")])
def test_the_text_of_a_seed_neither_goes_by_other_texts_nor_adds_to_them(
    flags: list[str], environment: str | None, call_with_pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_a_seed() -> dict[str, Any]:
        with monkeypatch.context() as patched:
            if environment is not None:
                patched.setenv("DRAFTLOOP_SPECULATIVE_SEED", environment)
            found: dict[str, Any] = call_with_pair(
                "generate", "the target", "--max-tokens", "40", *flags, "--json"
            ).json
        return found

    first = of_a_seed()
    assert known_costs()["experience"] == {}
    for prompt in ("learns", "read"):
        call_with_pair("generate", prompt, "--max-tokens", "40")
    assert known_costs()["experience"] != {}
    again = of_a_seed()
    assert (again["tokens"], again["acceptance_length"]) == (first["tokens"], first["acceptance_length"])


@pytest.mark.usefixtures("_drafting_pays")
def test_what_is_found_out_while_a_text_is_written_is_not_undone_by_it(call_with_pair, monkeypatch) -> None:
    call_with_pair("generate", "the target", "--max-tokens", "4")
    ((key, _),) = json.loads(Path("data/costs.json").read_bytes()).items()
    found = StoredProfile(
        LatencyProfile(0.002, (0.2,) * 9), Advice(3, "block", 1.5), {"block": Experience((4.0,), (3.0,))}
    )

    write = text.Decoding.__iter__

    def rounds(decoding):
        LatencyProfiles(Path("data/costs.json")).keep(key, found)
        return write(decoding)

    monkeypatch.setattr(text.Decoding, "__iter__", rounds)
    call_with_pair("generate", "the target", "--max-tokens", "40")
    known = known_costs()
    assert (known["costs"]["t_draft"], known["advice"]["speed_up"]) == (0.002, 1.5)
    assert known["experience"].keys() == {"block", "rejection"}


def known_costs() -> dict[str, Any]:
    """Of the one pair that is known, at the one kind of temperature."""
    (only,) = all_known_costs()
    return only


def all_known_costs() -> list[dict[str, Any]]:
    """In the order in which they were first kept."""
    return list(json.loads(Path("data/costs.json").read_bytes()).values())


def test_where_costs_cannot_be_kept_the_text_comes_all_the_same(call_with_pair) -> None:
    Path("data/costs.json").mkdir(parents=True)  # nothing can be written over it
    found = call_with_pair("generate", "the target", "--max-tokens", "10")
    assert (found.code, len(found.out) > 1) == (0, True)
    assert found.err.count("the latency profile is not kept for the next output") == 1


def test_a_prompt_that_cannot_be_used_is_refused_before_anything_is_measured(call_with_pair) -> None:
    assert call_with_pair("generate", "").code == 2
    assert not Path("data/costs.json").exists()


def test_a_config_that_fixes_the_length_measures_nothing(call_with_pair, monkeypatch) -> None:
    monkeypatch.setenv("DRAFTLOOP_SPECULATIVE_DRAFT_LENGTH", "fixed")
    found = call_with_pair("generate", "the target", *SHORT[:2], "--json")
    assert found.code == 0
    assert not Path("data").exists()
