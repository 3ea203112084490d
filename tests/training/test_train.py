from __future__ import annotations

import gc
import shutil
import weakref
from dataclasses import asdict, replace
from pathlib import Path

import mlx.core as mx
import orjson
import pytest
import yaml
from mlx_lm.tuner.utils import load_adapters
from tiny import tiny_llama, tiny_pair
from workshop import Workshop, adapter_bytes, records_of, snapshot

from draftloop.config import Config
from draftloop.data.records import PairId, own_group
from draftloop.errors import Interrupted, NothingToDo, RunError, StoreError, TrainingFailed
from draftloop.models import adapter as lora
from draftloop.models.adapter_format import AdapterConfig
from draftloop.registry.registry import Registry
from draftloop.runtime.signals import StopRequest
from draftloop.training import teacher_setup
from draftloop.training import train as train_module
from draftloop.training.checkpoints import Checkpoints
from draftloop.training.dataset import batch_plan as plan_module
from draftloop.training.dataset.batch_plan import order
from draftloop.training.memory.out_of_memory import estimate_fit
from draftloop.training.teacher import LiveTeacher

IDS = mx.array([[5, 1, 9, 30, 2, 7]])


def workshop(root: Path, failures: int = 10, validation: int = 2, **settings) -> Workshop:
    shop = Workshop(root, {"epochs": 2, "learning_rate": 5e-3, "batch_size": 4, **settings})
    shop.write(records_of(shop.pair, failures))
    shop.write(records_of(shop.pair, validation, split="validation"))  # what some failures say, so learning shows
    return shop


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    shop = workshop(tmp_path_factory.mktemp("trained"))
    result = shop.train()
    assert result.best_step > 0
    return shop, result


def test_a_version_comes_out_that_mlx_lm_reads_as_it_is(trained):
    shop, result = trained
    assert result.version == "v0001"
    shop.registry.verify(Path(result.path))
    model = load_adapters(tiny_llama(64, seed=2), result.path).eval()
    assert mx.array_equal(model(IDS), shop.pair.draft(IDS))
    assert not mx.array_equal(model(IDS), tiny_llama(64, seed=2)(IDS))


def test_the_base_and_the_target_are_byte_for_byte_what_they_were(trained):
    shop, _ = trained
    fresh = tiny_pair(64)
    assert snapshot(shop.pair.draft) == snapshot(fresh.draft)
    assert snapshot(shop.pair.target) == snapshot(fresh.target)
    assert not shop.pair.draft.training


def test_the_manifest_says_what_it_was_made_of(trained):
    shop, result = trained
    manifest = shop.registry.verify(Path(result.path))
    train = [record.id for record in shop.log.records(splits={"train"})]
    assert list(manifest.record_ids) == train
    assert manifest.parent is None
    assert manifest.pair == shop.pair.identity
    assert Config.model_validate(manifest.config) == shop.config
    assert manifest.metrics["run"] == "r0001"
    assert manifest.metrics["skipped"] == 0
    assert manifest.metrics["best"]["acceptance"] == result.val_acceptance_after


def test_a_log_that_is_deleted_meanwhile_does_not_make_the_manifest_forget_what_was_trained_on(tmp_path):
    shop = workshop(tmp_path)
    groups = {own_group(record) for record in shop.log.records(splits={"train"})}
    result = shop.train(on_step=lambda *_: shop.log.path.unlink(missing_ok=True))
    assert set(shop.registry.manifest(result.version).trained_groups) == groups


def test_the_run_says_what_reproduces_it(trained):
    shop, result = trained
    run = Path(result.run_path)
    description = yaml.safe_load((run / "run.yaml").read_text())
    assert Config.model_validate(description["config"]) == shop.config
    assert description["seed"] == 0
    assert description["pair"] == {"target": "target", "draft": "draft", "tokenizer": "tokenizer"}
    assert description["data"]["failures"]["records"] == 10
    assert len(description["data"]["validation"]["sha256"]) == 64
    assert {"versions", "platform", "git_commit"} <= set(description)
    assert orjson.loads((run / "result.json").read_bytes())["version"] == "v0001"
    assert "validation after step" in (run / "train.log").read_text()


def test_the_summary_adds_up(trained):
    shop, result = trained
    supervised = sum(len(record.target_output) for record in shop.log.records(splits={"train"}))
    replayed = round(supervised * 0.2 / 0.8)
    assert result.tokens == 2 * (supervised + replayed)
    assert result.replay_share == pytest.approx(0.2, abs=0.005)
    assert (result.failures, result.validation_records, result.skipped_batches) == (10, 2, 0)
    assert result.ended == "finished"
    assert result.train_loss_after < result.train_loss_before
    assert result.val_loss_after > 0


def test_what_was_learned_is_counted_by_the_records_and_measured_on_what_was_held_out(trained):
    shop, result = trained
    failures, validation = (list(shop.log.records(splits={split})) for split in ("train", "validation"))
    for found, records in ((result.lessons.learned_from, failures), (result.lessons.measured_on, validation)):
        assert found.generations == len(records)
        assert found.positions == sum(len(record.target_output) for record in records)
        assert found.rejected == sum(len(record.disagreements) for record in records)
    rows = result.lessons.kinds
    assert result.lessons.split == "validation"
    assert sum(row.positions for row in rows) == result.lessons.measured_on.positions
    assert sum(row.rejected for row in rows) == result.lessons.measured_on.rejected
    assert sum(row.remaining for row in rows) == pytest.approx(1)
    assert any(row.acceptance_after != row.acceptance_before for row in rows)
    assert orjson.loads((Path(result.run_path) / "result.json").read_bytes())["lessons"] == asdict(result.lessons) | {
        "kinds": [asdict(row) for row in rows]
    }
    assert "lessons" not in shop.registry.manifest(result.version).metrics


def test_a_resumed_run_knows_how_the_draft_did_at_its_start(tmp_path, trained):
    shop, stop = workshop(tmp_path), StopRequest()
    with pytest.raises(Interrupted):
        shop.train(stop=stop, on_step=lambda done, _: setattr(stop, "requested", done >= 3))
    assert shop.resume().lessons == trained[1].lessons


def test_a_resumed_run_that_cannot_know_its_start_says_nothing_of_it(tmp_path, trained):
    shop, stop = workshop(tmp_path), StopRequest()
    with pytest.raises(Interrupted):
        shop.train(stop=stop, on_step=lambda done, _: setattr(stop, "requested", done >= 3))
    (shop.runs / "r0001" / "start.json").unlink()
    expected = [replace(row, acceptance_before=None) for row in trained[1].lessons.kinds]
    assert list(shop.resume().lessons.kinds) == expected


def test_the_same_seed_gives_the_same_bytes(tmp_path, trained):
    again = workshop(tmp_path).train()
    name = "adapters.safetensors"
    assert (Path(again.path) / name).read_bytes() == (Path(trained[1].path) / name).read_bytes()


def test_the_buffer_remembers_what_was_trained_on(trained):
    shop, _ = trained
    assert {record.id for record in shop.replay.records()} == {r.id for r in shop.log.records(splits={"train"})}


def test_what_the_teacher_kept_is_freed_with_the_training(tmp_path, monkeypatch):
    """It may be gigabytes, and trainings may follow each other in a process. A cycle would keep it for a while."""
    made = []

    def noting(*arguments, **named):
        made.append(weakref.ref(teacher := LiveTeacher(*arguments, **named)))
        return teacher

    monkeypatch.setattr(teacher_setup, "LiveTeacher", noting)
    gc.collect()
    gc.disable()
    try:
        workshop(tmp_path, answers=1, proposals=1, epochs=4).train()
        assert [teacher() for teacher in made] == [None]
    finally:
        gc.enable()


def test_two_records_are_enough(tmp_path, capsys):
    shop = workshop(tmp_path, failures=2, validation=0)
    result = shop.train(quiet=False)
    said = capsys.readouterr()
    assert "no validation generation" in said.err
    assert said.out == ""
    assert result.version == "v0001"
    assert result.val_loss_before is None
    assert result.best_step is None
    assert result.lessons.split == "train"
    assert result.lessons.measured_on == result.lessons.learned_from


def test_a_candidate_goes_on_from_the_adapter_that_the_draft_carries(tmp_path):
    shop = workshop(tmp_path, lora={"rank": 3, "scale": 1.0, "matrices": "layers"})
    first = shop.train()
    directory = Path(first.path)
    shop.pair = replace(tiny_pair(64), adapter="v0001")
    lora.attach_directory(shop.pair.draft, directory)
    shop.settings["lora"] = {"rank": 8, "scale": 2.0}
    second = shop.train()
    assert (second.version, second.parent) == ("v0002", "v0001")
    assert shop.registry.verify(Path(second.path)).parent == "v0001"
    assert lora.carried_shape(shop.pair.draft) == AdapterConfig(rank=3, scale=1.0)
    assert second.val_loss_before == pytest.approx(first.val_loss_after, rel=1e-5)
    assert "v0001 is trained on as it is: rank 3, scale 1" in (Path(second.run_path) / "train.log").read_text()
    assert {p.name for p in directory.iterdir()} == {"adapter_config.json", "adapters.safetensors", "manifest.json"}


def test_a_child_s_interrupted_run_resumes_from_a_bare_pair(tmp_path):
    def child(root: Path) -> Workshop:
        shop = workshop(root)
        shop.train()
        shop.pair = replace(tiny_pair(64), adapter="v0001")
        lora.attach_directory(shop.pair.draft, shop.registry.root / "v0001")
        return shop

    straight, broken = child(tmp_path / "a"), child(tmp_path / "b")
    expected = straight.train()
    stop = StopRequest()
    with pytest.raises(Interrupted):
        broken.train(stop=stop, on_step=lambda done, _: setattr(stop, "requested", done >= 3))
    result = broken.resume()
    assert (result.version, result.parent) == ("v0002", "v0001")
    name = "adapters.safetensors"
    assert (Path(result.path) / name).read_bytes() == (Path(expected.path) / name).read_bytes()


def test_a_bare_draft_starts_anew_whatever_versions_there_are(tmp_path):
    shop = workshop(tmp_path)
    first = shop.train()
    shop.pair = tiny_pair(64)
    second = shop.train()
    assert second.parent is None
    assert second.val_loss_before == first.val_loss_before


def test_dropout_of_the_configuration_applies_to_a_parent_too(tmp_path):
    shop = workshop(tmp_path, lora={"dropout": 0.5})
    lora.attach_fresh(shop.pair.draft, AdapterConfig(rank=2, scale=2.0), seed=0)
    shop.pair = replace(shop.pair, adapter="elsewhere")
    result = shop.train()
    assert lora.carried_shape(shop.pair.draft).dropout == 0.5
    assert result.parent == "elsewhere"


def test_a_draft_that_a_stopped_run_left_in_training_mode_is_tried_out_without_dropout(tmp_path):
    shop = workshop(tmp_path, lora={"dropout": 0.5})
    shop.train()
    shop.pair.draft.train()
    log = Path(shop.train().run_path) / "train.log"
    assert "more than a head" not in log.read_text()


def test_nothing_to_do_makes_no_run(tmp_path):
    shop = Workshop(tmp_path, {})
    with pytest.raises(NothingToDo, match="run collect-data first"):
        shop.train()
    shop.write(records_of(shop.pair, 3, pair=PairId("other", "draft", "tokenizer")))
    with pytest.raises(NothingToDo, match="another target or tokenizer"):
        shop.train()
    assert not shop.runs.exists()
    assert not lora.is_attached(shop.pair.draft)


def test_numbers_that_go_wrong_make_no_version(tmp_path):
    shop = workshop(tmp_path, max_loss=1e-6, max_skipped_batches=3)
    with pytest.raises(TrainingFailed, match="3 micro-batches in a row could not be used") as failed:
        shop.train()
    assert failed.value.exit_code == 1
    assert shop.registry.versions() == []
    assert shop.registry.champion() is None


def test_skipped_batches_are_named_and_counted_in_log_metrics_manifest_and_summary(tmp_path, monkeypatch):
    from draftloop.training import step

    real, calls = step.problem, []

    def once(*arguments, **keywords):
        calls.append(1)
        return "it was made to fail" if len(calls) == 2 else real(*arguments, **keywords)

    monkeypatch.setattr(step, "problem", once)
    shop = workshop(tmp_path)
    result = shop.train()
    assert result.skipped_batches == 1
    assert shop.registry.verify(Path(result.path)).metrics["skipped"] == 1
    log = (Path(result.run_path) / "train.log").read_text()
    assert "step 2: skipped records 0" in log
    assert "it was made to fail" in log
    assert orjson.loads((Path(result.run_path) / "metrics.jsonl").read_bytes().splitlines()[-1])["kind"] == "validation"


def test_an_exception_is_not_swallowed(tmp_path, monkeypatch):
    class Unexpected(Exception):
        pass

    def explode(*_arguments, **_keywords):
        raise Unexpected

    monkeypatch.setattr("draftloop.training.step.make_batch", explode)
    with pytest.raises(Unexpected):
        workshop(tmp_path).train()


def test_long_outputs_are_cut_and_counted(tmp_path, monkeypatch):
    shop = workshop(tmp_path)
    short = Config.model_validate({**shop.config.model_dump(), "data": {"max_output_length": 4}})
    monkeypatch.setattr(Workshop, "config", short)
    result = shop.train()
    lengths = [len(record.target_output) for record in shop.log.records(splits={"train"})]
    assert result.cut_labels == sum(length - 4 for length in lengths)
    assert "were cut off" in (Path(result.run_path) / "train.log").read_text()


def test_failures_that_cannot_be_used_are_named_in_the_manifest_also_after_a_resumption(tmp_path):
    shop = workshop(tmp_path, failures=4)
    long = records_of(shop.pair, 1, seed=1, prompt_tokens=tuple([3] * 3000), id="f" * 32)
    foreign = records_of(shop.pair, 1, seed=2, pair=PairId("f" * 64, "b" * 64, "c" * 64), id="e" * 32)
    shop.write([*long, *foreign])
    stop = StopRequest()
    with pytest.raises(Interrupted):
        shop.train(stop=stop, on_step=lambda done, _: setattr(stop, "requested", done >= 1))
    manifest = shop.registry.manifest(shop.resume().version)
    assert manifest.passed_over_ids == (long[0].id,)
    assert len(manifest.record_ids) == 4


def test_with_all_matrices_the_embedding_and_the_head_learn_too(tmp_path):
    shop = workshop(tmp_path, lora={"matrices": "all"})
    result = shop.train()
    assert result.best_step > 0
    weights = mx.load(f"{result.path}/adapters.safetensors")
    learned = {name for name, leaf in weights.items() if name.endswith("lora_b") and mx.any(leaf).item()}
    assert {"model.embed_tokens.lora_b", "lm_head.lora_b"} < learned
    assert len(learned) == len(weights) // 2


def test_a_run_that_was_killed_after_its_version_was_made_does_not_make_another(tmp_path, monkeypatch):
    shop = workshop(tmp_path)

    def killed(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(shop.replay, "remember", killed)
    with pytest.raises(KeyboardInterrupt):
        shop.train()
    monkeypatch.undo()
    assert shop.registry.versions() == ["v0001"]
    result = shop.resume()
    assert result.version == "v0001"
    assert shop.registry.versions() == ["v0001"]
    with pytest.raises(RunError, match="no run 'latest'"):
        shop.resume()


def test_a_run_whose_id_was_used_before_still_makes_its_own_version(tmp_path):
    """Who deletes the runs and keeps the versions starts again with r0001."""
    shop = workshop(tmp_path)
    assert shop.train().run == "r0001"
    shutil.rmtree(shop.runs)
    stop = StopRequest()
    with pytest.raises(Interrupted):
        shop.train(stop=stop, on_step=lambda done, _: setattr(stop, "requested", done >= 3))
    result = shop.resume()
    assert (result.run, result.version) == ("r0001", "v0002")


def test_a_disk_that_is_full_at_the_end_loses_no_training(tmp_path, monkeypatch):
    shop = workshop(tmp_path)

    def refuse(*_arguments):
        raise StoreError("the disk is full")

    monkeypatch.setattr(Registry, "create", refuse)
    with pytest.raises(StoreError):
        shop.train()
    monkeypatch.undo()
    result = shop.resume()
    assert result.version == "v0001"
    assert result.steps == result.planned_steps


def test_resuming_with_other_models_or_a_foreign_checkpoint_is_refused(tmp_path, monkeypatch):
    shop = workshop(tmp_path)
    stop = StopRequest()
    stop.requested = True
    with pytest.raises(Interrupted):
        shop.train(stop=stop)
    other = replace(tiny_pair(64), identity=PairId("target", "another draft", "tokenizer"))
    with pytest.raises(RunError, match="made with other models"):
        shop.resume(load=lambda _models: other)
    tensors, progress = Checkpoints(shop.runs / "r0001" / "checkpoints").load()
    monkeypatch.setattr(Checkpoints, "load", lambda self: (tensors, {**progress, "other": 1}))
    with pytest.raises(RunError, match=r"of another draftloop \(other: "):
        shop.resume()


def test_the_plan_of_the_failures_is_made_once(tmp_path, monkeypatch):
    epochs = []
    monkeypatch.setattr(plan_module, "order", lambda *rest: epochs.append(1) or order(*rest))
    workshop(tmp_path, epochs=3).train()
    assert len(epochs) == 3


@pytest.mark.parametrize("proposals", [0, 1])
def test_what_is_fitted_into_memory_is_as_long_as_the_texts_that_will_be_written(tmp_path, monkeypatch, proposals):
    lengths = []

    def watched(learner, batches, *rest):
        lengths.append(max(len(one.ids) for batch in batches for one in batch))
        return estimate_fit(learner, batches, *rest)

    monkeypatch.setattr(train_module, "estimate_fit", watched)
    shop = workshop(tmp_path, epochs=4, proposals=proposals)
    shop.train()
    records = list(shop.log.records(splits={"train"}))
    longest = max(len(r.prompt_tokens) for r in records) + max(len(r.target_output) for r in records)
    assert (lengths[0] == longest) == bool(proposals)


def test_a_quantized_draft_trains(tmp_path):
    from mlx import nn

    shop = workshop(tmp_path)
    draft = tiny_llama(64, width=64, seed=2)
    nn.quantize(draft, group_size=32, bits=4)
    shop.pair = replace(shop.pair, draft=draft.freeze())
    before = snapshot(draft)
    result = shop.train()
    assert snapshot(draft) == before
    assert result.train_loss_after < result.train_loss_before
    assert adapter_bytes(draft)


def test_padded_logit_widths_train_on_the_shared_ids(tmp_path):
    shop = workshop(tmp_path)
    shop.pair = tiny_pair(64, 96)
    result = shop.train()
    assert result.train_loss_after < result.train_loss_before
