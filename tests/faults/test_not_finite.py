"""NaN or Inf in loss, gradient or weights: no trace of it but its name, an end after a few, and never a champion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from builders import NO_SYNC
from fault_table import Row
from mlx import nn
from tiny import tiny_llama, tiny_pair
from workshop import Workshop, examples_of, records_of

from draftloop.config import Training
from draftloop.errors import AdapterError, TrainingFailed
from draftloop.models import adapter as lora
from draftloop.models import manifest
from draftloop.models.adapter_format import WEIGHTS, AdapterConfig
from draftloop.registry.registry import Pointer, Registry
from draftloop.training import train as train_module
from draftloop.training.dataset.batch_plan import Window
from draftloop.training.forward import Forward, make_forward
from draftloop.training.memory.fitting import Fit
from draftloop.training.step import Learner
from draftloop.training.teacher import LiveTeacher

pytestmark = pytest.mark.row("NaN or Inf in loss or gradient")

PAIR = tiny_pair(64)
KINDS = [(where, number) for where in ("draft", "target") for number in ("nan", "inf")]
KINDS += [("gradient", number) for number in ("nan", "inf", "-inf")]


class Poison(Forward):
    """Wraps a forward; the calls for which `when` is true give logits, or a gradient, that are not finite."""

    def __init__(self, forward: Forward, number: str, when: Callable[[int], bool], gradient: bool = False) -> None:
        super().__init__(self._count, self._spoil)
        self.calls = 0
        self._forward, self._number, self._when, self._gradient = forward, float(number), when, gradient

    def _count(self, inputs: mx.array, positions: mx.array) -> mx.array:
        self.calls += 1
        return self._forward.hidden(inputs, positions)

    def _spoil(self, rows: mx.array) -> mx.array:
        logits = self._forward.head(rows)
        if not self._when(self.calls):
            return logits
        return self._with_bad_gradient(logits) if self._gradient else self._with_one_bad_logit(logits)

    def _with_one_bad_logit(self, logits: mx.array) -> mx.array:
        at = (mx.arange(logits.shape[0]) == 0)[:, None] & (mx.arange(logits.shape[1]) == 3)[None]
        return mx.where(at, self._number, logits)

    def _with_bad_gradient(self, logits: mx.array) -> mx.array:
        @mx.custom_function
        def identity(x: mx.array) -> mx.array:
            return x

        @identity.vjp
        def _(_primals: mx.array, cotangent: mx.array, _output: mx.array) -> mx.array:
            return mx.full(cotangent.shape, self._number)

        return identity(logits)


# -- one step ---------------------------------------------------------------------------------------------------------


EXAMPLES = examples_of(PAIR, 24)


def window(step: int) -> Window:
    """Two micro-batches of examples that no other step has."""
    size = 2
    first = EXAMPLES[2 * step * size % len(EXAMPLES) :]
    return Window(0, (tuple(first[:size]), tuple(first[size : 2 * size])))


def learner(where: str = "", number: str = "nan", call: int = 0) -> Learner:
    """Whose `call`-th micro-batch is poisoned."""
    draft = tiny_llama(seed=2)
    lora.attach_fresh(draft, AdapterConfig(rank=2, scale=2.0, dropout=0.2), seed=0)
    forwards: dict[str, Forward] = {}
    for name, model in (("draft", draft), ("target", PAIR.target)):
        forwards[name] = make_forward(model, name, print)
        if where in (name, "gradient" if name == "draft" else ""):
            at = call if name == "draft" else 2 * call - 1  # the target is asked for each of two examples
            forwards[name] = Poison(forwards[name], number, lambda i, at=at: i == at, where == "gradient")  # type: ignore[misc]
    teacher = LiveTeacher(forwards["target"], 64, EXAMPLES, 64, print)
    return Learner(draft, forwards["draft"], teacher, 64, Training(warmup_steps=2), steps=6)


def whole_state(found: Learner) -> dict[str, bytes]:
    return {name: bytes(memoryview(value)) for name, value in found.state().items()}


def state(found: Learner) -> dict[str, bytes]:
    return {name: value for name, value in whole_state(found).items() if name != "random"}


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize(("where", "number"), KINDS)
def test_a_poisoned_micro_batch_of_any_step_leaves_no_trace_but_its_name(where: str, number: str, row: Row) -> None:
    for poisoned in range(row.count(2, 6)):
        found, clean = learner(where, number, call=2 * poisoned + 1), learner()
        for step in range(poisoned + 2):
            whole = window(step)
            first, second = whole.micro_batches
            result = found.train(whole, step, 0, lambda: None)
            if step != poisoned:
                clean.train(whole, step, 0, lambda: None)
                assert result.skipped == ()
            else:
                assert [one.record_ids for one in result.skipped] == [tuple(e.record_id for e in first)]
                assert result.tokens == sum(len(example.labels) for example in second)
                _train_on_the_second_alone(clean, whole, step)
            assert state(found) == state(clean)
        assert all(mx.all(mx.isfinite(leaf)).item() for leaf in lora.adapter_parameters(found.draft).values())
        row.did(1, "poisoned steps")


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize(("where", "number"), KINDS)
def test_a_poisoned_step_of_one_micro_batch_is_taken_back_to_the_last_bit(where: str, number: str, row: Row) -> None:
    """By then its update is made: such a window is evaluated with it, at once."""
    for poisoned in range(row.count(2, 6)):
        found, clean = learner(where, number, call=poisoned + 1), learner()
        for step in range(poisoned + 2):
            alone, before = Window(0, window(step).micro_batches[:1]), whole_state(found)
            result = found.train(alone, step, 0, lambda: None)
            if step == poisoned:
                (skipped,) = result.skipped
                assert skipped.record_ids == tuple(e.record_id for e in alone.micro_batches[0])
                assert result.tokens == 0
                assert whole_state(found) == before
            else:
                clean.train(alone, step, 0, lambda: None)
                assert result.skipped == ()
                assert whole_state(found) == whole_state(clean) != before
        row.did(1, "poisoned steps")


def _train_on_the_second_alone(clean: Learner, whole: Window, step: int) -> None:
    """The same step without its first micro-batch; an empty one stands there, so that dropout draws alike."""
    first, second = whole.micro_batches
    clean.train(Window(0, ((first[0].shortened(0),), second)), step, 0, lambda: None)


# -- a whole training -------------------------------------------------------------------------------------------------


def workshop(root: Path, **settings: Any) -> Workshop:
    shop = Workshop(root, {"epochs": 2, "batch_size": 4, "replay_ratio": 0.0, **settings}, NO_SYNC)
    shop.write(records_of(shop.pair, 8))
    return shop


def poisoned_draft(monkeypatch: pytest.MonkeyPatch, when: Callable[[int], bool]) -> None:
    def make(model: nn.Module, name: str, say: Callable[[str], None]) -> Forward:
        forward = make_forward(model, name, say)
        return Poison(forward, "nan", when) if name == "draft" else forward

    monkeypatch.setattr(train_module, "make_forward", make)
    monkeypatch.setattr(train_module, "estimate_fit", lambda *_: Fit())  # its passes would be counted too


def test_a_training_names_the_batch_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: Row) -> None:
    steps = workshop(tmp_path / "clean").train().steps
    for poisoned in range(1, steps + 1):
        poisoned_draft(monkeypatch, lambda call, at=poisoned: call == at)  # type: ignore[misc]
        shop = workshop(tmp_path / str(poisoned))
        result = shop.train()
        assert result.skipped_batches == 1
        log = (Path(result.run_path) / "train.log").read_text()
        assert f"step {poisoned}: skipped records 0" in log
        assert "its loss is nan" in log
        shop.registry.promote(result.version)
        row.did(1, "trainings with one poisoned step")


def test_several_in_a_row_end_the_training_without_a_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: Row
) -> None:
    poisoned_draft(monkeypatch, lambda call: call > 2)
    shop = workshop(tmp_path, max_skipped_batches=2)
    with pytest.raises(TrainingFailed, match="2 micro-batches in a row could not be used") as failed:
        shop.train()
    assert failed.value.exit_code == 1
    assert shop.registry.versions() == []
    row.did(1, "trainings that were stopped")


def test_a_validation_that_is_not_finite_from_the_start_ends_the_training_before_its_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: Row
) -> None:
    poisoned_draft(monkeypatch, lambda _call: True)
    shop = workshop(tmp_path)
    shop.write(records_of(shop.pair, 3, split="validation"))
    with pytest.raises(TrainingFailed, match="first validation gives loss nan") as failed:
        shop.train()
    assert "\n" not in str(failed.value)
    assert shop.registry.versions() == []
    row.did(1, "trainings that were stopped")


# -- weights ----------------------------------------------------------------------------------------------------------

POISONED = [
    (kind, number, at)
    for kind in (mx.float32, mx.float16, mx.bfloat16)
    for number in ("nan", "-nan", "inf", "-inf")
    for at in (0, 9, -1)
]


def write_poisoned(directory: Path, kind: mx.Dtype, number: str, at: int) -> None:
    """A real adapter of which one number, in one leaf, is none."""
    lora.attach_fresh(PAIR.draft, AdapterConfig(rank=2, scale=2.0), seed=0)
    lora.save_adapter(PAIR.draft, directory)
    weights = {name: leaf.astype(kind) for name, leaf in lora.adapter_parameters(PAIR.draft).items()}
    name = sorted(weights)[at]
    flat = weights[name].flatten()
    flat[at] = -mx.array(mx.nan) if number == "-nan" else mx.array(float(number))
    weights[name] = flat.reshape(weights[name].shape)
    mx.save_safetensors(str(directory / WEIGHTS), weights, metadata={"format": "mlx"})


def test_weights_that_are_not_finite_become_no_version(tmp_path: Path, row: Row) -> None:
    registry = Registry(tmp_path, NO_SYNC)
    for kind, number, at in POISONED:
        with pytest.raises(AdapterError, match=r"lora_. holds NaN or infinity"):
            registry.create(lambda path, made=(kind, number, at): write_poisoned(path, *made), {})  # type: ignore[misc]
    assert registry.versions() == []
    row.did(len(POISONED), "weights that are not finite")


def test_a_version_of_them_that_is_there_all_the_same_is_never_promoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: Row
) -> None:
    """As if an older draftloop, or somebody with a hash of their own, had put it there."""
    registry = Registry(tmp_path, NO_SYNC)
    for number in ("nan", "inf"):
        with monkeypatch.context() as patched:
            patched.setattr(manifest, "check_finite", lambda _directory: None)
            name = registry.create(lambda path, number=number: write_poisoned(path, mx.float32, number, 3), {}).name  # type: ignore[misc]
        with pytest.raises(AdapterError, match="holds NaN or infinity"):
            registry.promote(name)
        with pytest.raises(AdapterError, match="holds NaN or infinity"):
            lora.attach_directory(tiny_llama(seed=2), registry.root / name)
    assert registry.pointer() == Pointer()
    row.did(2, "promotions of what is not finite")
