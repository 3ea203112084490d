from __future__ import annotations

import gc
from dataclasses import replace
from itertools import count
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from stops import StopAfter
from tiny import tiny_pair
from workshop import VOCABULARY, Workshop, records_of

from draftloop.data.records import Record
from draftloop.data.teacher_top_k import TopK, encode_top_k
from draftloop.decoding import batched_generation as side_by_side
from draftloop.decoding.sampling_filters import sampling_log_probs
from draftloop.errors import Interrupted, RunError
from draftloop.models import adapter as lora
from draftloop.training import loop as loop_module
from draftloop.training import teacher_setup as tuition
from draftloop.training.working_time import WorkingTime

RECORDS = records_of(tiny_pair(VOCABULARY), 12)
VALIDATION = records_of(tiny_pair(VOCABULARY), 3, seed=9, split="validation")


def shop_at(root: Path, **settings) -> Workshop:
    shop = Workshop(root, {"epochs": 6, "batch_size": 4, "replay_ratio": 0.0, **settings})
    shop.write([*RECORDS, *VALIDATION])
    return shop


def with_kept(shop: Workshop, record: Record, k: int = 8) -> Record:
    """The record with what the target says along it kept beside the log."""
    ids = record.prompt_tokens + record.target_output
    logits = shop.pair.target(mx.array([ids[:-1]]))[0, len(record.prompt_tokens) - 1 :]
    log_p = np.array(sampling_log_probs(logits, record.sampler, VOCABULARY))
    order = np.argsort(-log_p, axis=-1)[:, :k]
    kept = np.take_along_axis(log_p, order, axis=-1)
    rows = TopK(order.astype(np.int32), kept, np.clip(1 - np.exp(kept).sum(-1), 0, 1).astype(np.float32))
    place = shop.data.blobs.append(encode_top_k(rows))
    return replace(record, teacher=place)


def trained(shop: Workshop) -> dict[str, np.ndarray]:
    shop.train()
    return {name: np.array(value) for name, value in lora.adapter_parameters(shop.pair.draft).items()}


class Deaf:
    """A target that must not be asked."""

    def __call__(self, *arguments, **keywords):
        raise AssertionError("the target was asked")


def test_a_logged_teacher_needs_no_target(tmp_path):
    shop = Workshop(tmp_path, {"epochs": 2, "batch_size": 4, "teacher": "logged"})
    shop.write([with_kept(shop, record) for record in RECORDS[:8]])
    object.__setattr__(shop.pair, "target", Deaf())
    assert shop.train().steps > 0


def test_with_every_id_kept_a_logged_teacher_teaches_what_the_live_one_does(tmp_path):
    found = {}
    for teacher in ("live", "logged"):
        shop = Workshop(tmp_path / teacher, {"epochs": 3, "batch_size": 4, "teacher": teacher})
        shop.write([with_kept(shop, record, VOCABULARY) for record in RECORDS[:8]])
        found[teacher] = trained(shop)
    for name, expected in found["live"].items():
        assert np.allclose(found["logged"][name], expected, atol=2e-4), name


def test_what_was_not_kept_is_learned_from_the_tokens_and_said(tmp_path, capsys):
    shop = Workshop(tmp_path, {"epochs": 2, "batch_size": 4, "teacher": "logged"})
    records = RECORDS[:8]
    shop.write([*(with_kept(shop, record) for record in records[:5]), *records[5:]])
    shop.train(quiet=False)
    assert "for 3 of 8 generations no teacher probabilities are kept" in capsys.readouterr().err


def test_a_damaged_blob_is_named_and_passed_over(tmp_path, capsys):
    shop = Workshop(tmp_path, {"epochs": 2, "batch_size": 4, "teacher": "logged"})
    shop.write([with_kept(shop, record) for record in RECORDS[:8]])
    content = bytearray(shop.data.blobs.path.read_bytes())
    content[30] ^= 1
    shop.data.blobs.path.write_bytes(content)
    assert shop.train(quiet=False).steps > 0
    said = capsys.readouterr().err
    assert "for 1 of 8 generations no teacher probabilities are kept" in said
    assert "checksum" in said


def test_what_was_kept_of_fewer_positions_than_are_trained_on_is_not_taken(tmp_path, capsys):
    shop = Workshop(tmp_path, {"epochs": 2, "batch_size": 4, "teacher": "logged"})
    records = [with_kept(shop, record) for record in RECORDS[:8]]
    shortest, longest = (f(records, key=lambda record: len(record.target_output)) for f in (min, max))
    records[records.index(longest)] = replace(longest, teacher=shortest.teacher)
    shop.write(records)
    shop.train(quiet=False)
    said = capsys.readouterr().err
    assert "for 1 of 8 generations no teacher probabilities are kept" in said
    assert f"found {len(shortest.target_output)} rows, expected {len(longest.target_output)} or more" in said


def test_collecting_again_gives_a_logged_teacher_back_what_was_lost(tmp_path, capsys):
    shop = Workshop(tmp_path, {"epochs": 2, "batch_size": 4, "teacher": "logged", "replay_ratio": 0.2})
    shop.write([with_kept(shop, record) for record in RECORDS[:8]])
    shop.train(quiet=False)
    shop.data.blobs.path.unlink()
    shop.train(quiet=False)
    assert "no teacher probabilities are kept" in capsys.readouterr().err
    shop.write([with_kept(shop, record) for record in reversed(RECORDS[:8])])
    shop.train(quiet=False)
    assert "no teacher probabilities are kept" not in capsys.readouterr().err


def test_writing_new_texts_takes_a_share_of_the_time_limit_and_the_training_goes_on(tmp_path, capsys, monkeypatch):
    class Clock(WorkingTime):
        """Goes on by a second with every look at it, and never pauses."""

        def __init__(self) -> None:
            super().__init__(lambda: float(next(seconds)))

        def __enter__(self) -> WorkingTime:
            return self

    seconds = count()
    monkeypatch.setattr(loop_module, "WorkingTime", Clock)
    monkeypatch.setattr(side_by_side, "MOST_ROWS", 4)
    shop = shop_at(tmp_path, answers=4, epochs=8, max_minutes=2.0)
    result = shop.train(quiet=False)
    said = capsys.readouterr().err
    assert "target samples: " in said
    assert "as many as the time limit" in said
    assert result.ended == "time limit"
    assert result.steps > result.planned_steps * 0.2


def test_without_a_teacher_the_tokens_alone_are_learned_whatever_the_loss(tmp_path):
    found = {}
    for loss in ("ce", "kl"):
        shop = shop_at(tmp_path / loss, teacher="none", loss=loss)
        object.__setattr__(shop.pair, "target", Deaf())
        found[loss] = trained(shop)
    for name, expected in found["ce"].items():
        assert np.allclose(found["kl"][name], expected, atol=1e-4), name


@pytest.mark.parametrize("settings", [{"proposals": 2}, {"answers": 2}, {"answers": 1, "proposals": 3}])
def test_new_texts_change_the_steps_not_at_all_but_what_is_learned(tmp_path, settings):
    plain, more = shop_at(tmp_path / "plain"), shop_at(tmp_path / "more", **settings)
    before, after = trained(plain), trained(more)
    results = [shop.registry.manifest("v0001").metrics["step"] for shop in (plain, more)]
    assert results[0] == results[1]
    assert any(not np.array_equal(before[name], after[name]) for name in before)
    manifests = [shop.registry.manifest("v0001").record_ids for shop in (plain, more)]
    assert manifests[0] == manifests[1]  # a new text is no record


def test_with_few_passes_over_the_failures_no_new_answers_are_asked_for(tmp_path, capsys):
    shop_at(tmp_path / "few", answers=3, epochs=2).train(quiet=False)
    assert "answers" not in capsys.readouterr().err
    shop_at(tmp_path / "some", answers=3, epochs=4).train(quiet=False)
    assert "target samples: 12 prompts, 2 times" in capsys.readouterr().err


def test_at_temperature_0_the_target_is_not_asked_to_say_the_same_again(tmp_path, capsys):
    shop = Workshop(tmp_path, {"epochs": 6, "batch_size": 4, "answers": 2})
    shop.write(records_of(shop.pair, 6, temperature=0.0))
    assert shop.train(quiet=False).steps > 0
    assert "anew" not in capsys.readouterr().err


@pytest.mark.usefixtures("on_the_cpu")
def test_cross_entropy_never_learns_the_draft_s_own_tokens(tmp_path):
    plain, asked = shop_at(tmp_path / "plain", loss="ce"), shop_at(tmp_path / "asked", loss="ce", proposals=3)
    before, after = trained(plain), trained(asked)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_new_texts_are_gone_with_the_end_of_the_run(tmp_path):
    shop = shop_at(tmp_path, proposals=2)
    shop.train()
    assert not list(shop.runs.rglob("texts-*"))


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("looks", [3, 6, 8, 12, 17, 23, 30, 40])
@pytest.mark.some(3)
def test_a_run_stopped_anywhere_even_while_texts_are_written_ends_in_the_same_bits(tmp_path, looks):
    settings = {"proposals": 2, "answers": 1, "save_every": 2, "steps_per_eval": 3, "replay_ratio": 0.2}
    uncut, shop = shop_at(tmp_path / "whole", **settings), shop_at(tmp_path / "cut", **settings)
    whole = trained(uncut)
    manifest = uncut.registry.manifest("v0001")
    with pytest.raises(Interrupted):
        shop.train(stop=StopAfter(looks))
    shop.resume()
    found = {name: np.array(value) for name, value in lora.adapter_parameters(shop.pair.draft).items()}
    assert all(np.array_equal(found[name], expected) for name, expected in whole.items())
    assert shop.registry.manifest("v0001").record_ids == manifest.record_ids


def test_damaged_texts_end_a_resumption_with_the_file_s_name(tmp_path):
    shop = shop_at(tmp_path, proposals=1, save_every=1)
    with pytest.raises(Interrupted):
        shop.train(stop=StopAfter(30))
    path = next(shop.runs.rglob("texts-0.json"))
    path.write_bytes(b"[{")
    with pytest.raises(RunError, match="texts-0"):
        shop.resume()


def test_the_target_is_left_on_disk_until_it_is_asked(small_models):
    from draftloop.models.pair import load_pair

    def taken(**how) -> tuple[object, int]:
        gc.collect()  # what an earlier test left would be freed in the middle
        mx.synchronize()  # what is enqueued holds its arrays until it has run
        before = mx.get_active_memory()
        pair = load_pair(small_models, **how)
        mx.synchronize()
        return pair, mx.get_active_memory() - before

    eager, whole = taken()
    size = sum(value.nbytes for _, value in tree_flatten(eager.target.parameters()))
    lazy, less = taken(lazy_target=True)
    assert whole - less > 0.9 * size  # loads of one pair differ by up to 11 kB from each other
    mx.eval(lazy.target(mx.array([[1, 2]])))
    assert mx.array_equal(lazy.target(mx.array([[1, 2]])), eager.target(mx.array([[1, 2]])))


def test_new_texts_that_memory_refuses_are_done_without(tmp_path, monkeypatch, capsys):
    def refuse(*_, **__):
        raise side_by_side.NoRoom("a text alone does not fit into memory")

    monkeypatch.setattr(tuition, "sample_outputs", refuse)
    shop = shop_at(tmp_path, answers=1, proposals=2)
    result = shop.train(quiet=False)
    assert result.steps == result.planned_steps > 0
    assert "a text alone does not fit into memory; going on without these samples" in capsys.readouterr().err
