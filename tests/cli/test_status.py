"""`status`: what has piled up, and that it is plain text."""

from __future__ import annotations

import os
from pathlib import Path

import mlx.core as mx
from builders import make_record, write_adapter

from draftloop import reference
from draftloop.data.log import FailureLog
from draftloop.data.records import PairId, Record
from draftloop.data_directory import DataDirectory
from draftloop.models.fingerprints import fingerprints
from draftloop.registry.registry import Registry
from draftloop.training.run import RunDirectory

LOG = Path("data/failures/failures.jsonl")
PAIR = PairId(fingerprints(reference.TARGET).model, fingerprints(reference.DRAFT).model, "c" * 64)


def ours(prompt: str, **overrides: str) -> Record:
    """A record of the configured pair."""
    return make_record(prompt=prompt, pair=PAIR, **overrides)


def test_an_empty_directory_has_a_status_and_stays_empty(call) -> None:
    found = call("status")
    assert found.code == 0
    assert "champion" in found.out
    assert "the bare draft is in use" in found.out
    assert not Path("data").exists()


def test_it_says_that_prompts_lie_there_in_plain_text(call) -> None:
    log = FailureLog(LOG)
    for i in range(3):
        log.append(ours(f"secret {chr(0x4E00 + i)}", source="mine"))
    found = call("status")
    assert "Prompts and outputs lie under data in plain text" in found.err
    assert "3 (3 new, 0 used, 0 for validation and benchmark)" in found.out
    assert "3 mine" in found.out
    assert "secret" not in found.out + found.err


def test_it_says_how_the_last_retrain_ended(call) -> None:
    assert call("status", "--json").json["last_retrain"] is None
    assert "last retrain" not in call("status").out
    call("retrain")
    assert "last retrain  nothing, 20" in call("status").out
    last = call("status", "--json").json["last_retrain"]
    assert (last["outcome"], last["why"]) == ("nothing", "no failure to train on yet; `collect-data` logs them")


def test_a_model_that_is_not_on_this_machine_is_named(call) -> None:
    assert "target nope is not on this machine" in call("status", "--model", "nope").err
    assert "not on this machine" not in call("status").err


def test_a_damaged_champion_is_named_with_the_way_out(call) -> None:
    registry = Registry(Path("data/adapters"))
    registry.promote(registry.create(write_adapter, {}).name)
    weights = registry.root / "v0001" / "adapters.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    found = call("status")
    assert found.code == 0
    assert "damaged: the champion is not whole" in found.err
    assert "`adapters rollback`" in found.err


def break_weights(registry: Registry, name: str) -> None:
    weights = registry.root / name / "adapters.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")


def test_damage_of_previous_and_of_any_other_version_is_named_in_text_and_json(call) -> None:
    registry = Registry(Path("data/adapters"))
    for _ in range(4):
        registry.create(write_adapter, {})
    for name in ("v0001", "v0002"):
        registry.promote(name)
    for name in ("v0001", "v0003"):
        break_weights(registry, name)
    (registry.root / "v0004" / "manifest.json").write_bytes(b"?")
    for command in (["status"], ["adapters", "list"]):
        found = call(*command)
        assert found.code == 0
        assert "damaged: v0001, to which `adapters rollback` would go back: data/adapters/v0001/" in found.err
        assert "damaged: v0003: data/adapters/v0003/adapters.safetensors is damaged" in found.err
        assert found.err.count("v0004/manifest.json is damaged") == 1
        damage = call(*command, "--json").json["damage"]
        assert sorted(line[:5] for line in damage if line.startswith("v")) >= ["v0001", "v0003"]
        assert len(damage) == 3
    break_weights(registry, "v0002")
    assert sum("v0002" in line for line in call("status", "--json").json["damage"]) == 1


def test_a_damaged_line_of_the_replay_buffer_is_named(call) -> None:
    replay = DataDirectory(Path("data")).replay
    replay.remember([make_record()], 0)
    replay.path.write_bytes(b"?\n" + replay.path.read_bytes())
    assert "damaged: replay buffer, line 1: " in call("status").err


def test_json_has_the_counts(call) -> None:
    log = FailureLog(LOG)
    records = [log.append(ours(f"prompt {chr(0x4E00 + i)}")) for i in range(3)]
    registry = Registry(Path("data/adapters"))
    registry.create(write_adapter, {"record_ids": [records[0].id]})
    assert call("adapters", "promote", "v0001").code == 0
    found = call("status", "--json")
    assert (found.code, found.err) == (0, "")
    values = found.json
    assert values["status"] == "ok"
    assert (values["generations"], values["failures_new"], values["failures_used"]) == (3, 2, 1)
    assert (values["splits"], values["sources"]) == ({"train": 3}, {"default": 3})
    assert (values["adapters"], values["champion"]) == (["v0001"], "v0001")


def test_damage_is_named_and_no_fault(call) -> None:
    log = FailureLog(LOG)
    for i in range(2):
        log.append(make_record(prompt=f"prompt {chr(0x4E00 + i)}"))
    LOG.write_bytes(LOG.read_bytes().replace(b"rejection", b"rejectioM", 1))
    found = call("status")
    assert found.code == 0
    assert "damaged: line 1: " in found.err


def test_a_data_directory_whose_name_is_no_utf_8_has_a_status(call) -> None:
    assert call("--data-dir", "a\udcff", "status", "--json").json["log"] == "a\udcff/failures/failures.jsonl"


def test_generations_of_another_target_are_named_and_not_counted_as_failures(call) -> None:
    FailureLog(LOG).append(make_record())
    found = call("status")
    assert "1 of the generations" in found.out
    assert call("status", "--json").json["failures_new"] == 0


def test_it_says_what_retrain_would_do_next(call) -> None:
    for i in range(3):
        FailureLog(LOG).append(ours(f"prompt {chr(0x4E00 + i)}"))
    assert "nothing (3 unused failures of 50)" in call("status").out
    following = call("status", "--json").json["next"]
    assert (following["action"], following["subject"]) == ("nothing", None)


def test_a_fall_of_acceptance_is_named(call) -> None:
    log = FailureLog(LOG)
    good = {"log_p": (-0.5,) * 6, "log_q": (-0.6,) * 6}
    bad = {"log_p": (-0.5,) * 6, "log_q": (-6.0,) * 6}
    for i in range(60):
        log.append(ours(f"prompt {chr(0x4E00 + i)}", source="chat", **(good if i < 40 else bad)))  # type: ignore[arg-type]
    found = call("status")
    assert "drift: acceptance of chat fell from 0.9" in found.err
    (watch,) = call("status", "--json").json["drift"]
    assert (watch["alarm"], watch["kind"], watch["source"]) == (True, "drift", "chat")
    assert watch["alarm_at"] >= 10


def test_a_training_at_work_is_shown_and_is_not_cut_off(call) -> None:
    data = DataDirectory(Path("data"))
    for i in range(60):
        FailureLog(LOG).append(ours(f"prompt {'x' * i}"))
    assert call("status", "--json").json["running"] is None
    with data.training_lock(), data.presence.shown("retrain"):
        run = RunDirectory.create(data.runs)
        run.describe({"purpose": "retrain"}, {})
        run.checkpoints.save({"a": mx.array(1.0)}, {"step": 20})
        run.note_progress(40, 170, 700.0)
        found = call("status")
        said = f"retrain, process {os.getpid()}, for less than a minute: run r0001, step 40 of 170, at most about 12"
        assert (found.code, "cut off" in found.out, said in found.out) == (0, False, True)
        values = call("status", "--json").json
        assert (values["running"]["run"], values["running"]["step"], values["running"]["stopped"]) == (
            "r0001",
            40,
            False,
        )
        assert (values["next"]["action"], values["unfinished"]) == ("nothing", [])
        dry = call("retrain", "--dry-run")
        assert (dry.code, dry.out.startswith("would do nothing: another one is at work: retrain, process ")) == (
            13,
            True,
        )
        dry = call("retrain", "--dry-run", "--json")
        assert (dry.code, dry.json["status"], dry.json["running"]["steps"]) == (13, "locked", 170)
    values = call("status", "--json").json
    assert (values["running"], values["unfinished"]) == (None, [{"run": "r0001", "step": 20, "purpose": "retrain"}])


def test_a_training_that_was_stopped_is_shown_with_the_way_to_go_on(call) -> None:
    data = DataDirectory(Path("data"))
    for step in (3, 5):
        run = RunDirectory.create(data.runs)
        run.describe({"purpose": "train"}, {})
        run.checkpoints.save({"a": mx.array(1.0)}, {"step": step})
    said = "r0002, stopped or cut off after step 5: `train --resume r0002` goes on; earlier ones: r0001"
    assert said in call("status").out


def test_the_sizes_and_the_bound_are_shown(call, monkeypatch) -> None:
    data = DataDirectory(Path("data"))
    data.log.extend([ours("x"), ours("y")], data.blobs, [b"x" * 700_000] * 2)
    found = call("status")
    assert "on disk" in found.out
    assert "log 0.0 MB, teacher probabilities 1.4 MB, prompt index 0.0 MB, replay buffer 0.0 MB; no bound" in found.out
    values = call("status", "--json").json
    assert (values["log_bytes"], values["teacher_bytes"]) == (LOG.stat().st_size, 1_400_000)
    assert (values["prompts_bytes"], values["replay_bytes"], values["max_log_mb"]) == (0, 0, 0)
    monkeypatch.setenv("DRAFTLOOP_DATA_MAX_LOG_MB", "1")
    found = call("status")
    assert "at most 1 MB without the replay buffer" in found.out
    assert "the log is above its bound: `log compact`" in found.err


def test_generations_that_were_cancelled_are_counted(call) -> None:
    FailureLog(LOG).append(ours("x", finish="cancelled"))
    assert "1 of the generations: nothing is measured on them" in call("status").out
    assert call("status", "--json").json["cancelled"] == 1
