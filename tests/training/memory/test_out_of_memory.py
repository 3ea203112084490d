"""A want of memory gives a step up and cuts it smaller; what was learned is the same, and nothing is lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import orjson
import pytest
from mlx import nn
from tiny import tiny_llama, tiny_pair
from workshop import Workshop, adapter_bytes, examples_of, records_of, snapshot

from draftloop.config import Training
from draftloop.errors import Interrupted, TrainingFailed
from draftloop.models import adapter as lora
from draftloop.models.adapter_format import AdapterConfig
from draftloop.runtime import memory
from draftloop.runtime.memory import Budget
from draftloop.runtime.signals import StopRequest
from draftloop.training.dataset.batch_plan import Window
from draftloop.training.dataset.examples import Example
from draftloop.training.forward import make_forward
from draftloop.training.memory.fitting import SAFETY, Fit
from draftloop.training.memory.out_of_memory import OutOfMemoryFallback, estimate_fit
from draftloop.training.memory.recompute import is_recomputed
from draftloop.training.step import Learner
from draftloop.training.teacher import LiveTeacher
from scripts import model_zoo

PAIR = tiny_pair(64)
EXAMPLES = examples_of(PAIR, 12)
METAL = (
    "[METAL] Command buffer execution failed: Insufficient Memory "
    "(00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)."
)
CUDA = "cudaMallocAsync(&data, size, stream) failed: out of memory"


def learner(
    draft: nn.Module | None = None, fit: Fit | None = None, texts: Sequence[Example] = EXAMPLES, **settings
) -> Learner:
    draft = draft or tiny_llama(seed=2)
    lora.attach_fresh(draft, AdapterConfig(rank=4, scale=2.0, dropout=0.0), seed=0)
    leaves = lora.adapter_parameters(draft)
    noise = {n: 0.1 * mx.random.normal(a.shape, key=mx.random.key(i)) for i, (n, a) in enumerate(leaves.items())}
    lora.load_parameters(draft, noise)
    teacher = LiveTeacher(make_forward(PAIR.target, "target", print), 64, texts, 64, print)
    found = Learner(draft, make_forward(draft, "draft", print), teacher, 64, Training(warmup_steps=0, **settings), 100)
    found.fit = fit or Fit()
    return found


def window(*batches: Sequence[Example]) -> Window:
    return Window(0, tuple(tuple(batch) for batch in batches))


def nothing() -> None:
    """Nobody wants to stop."""


def refusing(
    monkeypatch: pytest.MonkeyPatch, refuses: Callable[[Learner, Sequence[Example]], bool], text: str = METAL
) -> list[int]:
    """Learners that raise an error in the middle of a step as MLX would; gives the rows of every part tried."""
    work, tried = Learner._enqueued, []

    def enqueued(self: Learner, examples: Sequence[Example]):
        if examples[0].record_id:  # no probe
            tried.append(len(examples))
            if refuses(self, examples):
                raise RuntimeError(text)
        return work(self, examples)

    monkeypatch.setattr(Learner, "_enqueued", enqueued)
    return tried


# By hand ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ce", "kl", "tv", "nla"])
@pytest.mark.parametrize(
    "fit", [Fit(room=32.0, most=32.0), Fit(room=100.0, most=100.0), Fit(room=100.0, most=100.0, recompute=True)]
)
def test_a_step_in_parts_is_the_step(kind, fit):
    whole, parts = learner(loss=kind, max_grad_norm=1e9), learner(fit=fit, loss=kind, max_grad_norm=1e9)
    one, two = (found.train(window(EXAMPLES[:7], EXAMPLES[7:]), 0, 0, nothing) for found in (whole, parts))
    assert two.tokens == one.tokens
    assert two.loss == pytest.approx(one.loss, rel=1e-5)
    assert two.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-4)
    for name, moment in whole.state().items():
        if name.endswith(".m"):  # the mean gradient, before AdamW normalises it
            assert mx.allclose(parts.state()[name], moment, rtol=1e-3, atol=1e-6), name
    ours, theirs = (lora.adapter_parameters(found.draft) for found in (whole, parts))
    assert max(mx.abs(ours[name] - theirs[name]).max().item() for name in ours) < 1e-5 or kind in ("tv", "nla")


def test_a_loss_that_weighs_by_the_micro_batch_is_nearly_the_same_in_parts():
    whole, parts = learner(loss="lk"), learner(fit=Fit(room=100.0, most=100.0), loss="lk")
    one, two = (found.train(window(EXAMPLES), 0, 0, nothing) for found in (whole, parts))
    assert two.tokens == one.tokens
    assert two.acceptance == pytest.approx(one.acceptance, rel=1e-5)
    assert two.loss == pytest.approx(one.loss, rel=0.1)


def test_what_is_evaluated_in_parts_is_the_same():
    expected = learner(loss="kl").evaluate(EXAMPLES)
    assert [*learner(fit=Fit(room=32.0, most=32.0), loss="kl").evaluate(EXAMPLES)] == pytest.approx(
        [*expected], rel=1e-5
    )


def test_a_refused_step_has_changed_nothing(monkeypatch):
    refusing(monkeypatch, lambda _, examples: examples[0] is EXAMPLES[7])
    found = learner()
    before = adapter_bytes(found.draft)
    state = {name: bytes(memoryview(value)) for name, value in found.state().items()}
    with pytest.raises(RuntimeError, match="Insufficient Memory"):
        found.train(window(EXAMPLES[:7], EXAMPLES[7:]), 0, 0, nothing)
    assert adapter_bytes(found.draft) == before
    assert {name: bytes(memoryview(value)) for name, value in found.state().items()} == state


def test_a_step_refused_when_its_update_was_made_already_has_changed_nothing(monkeypatch):
    """A window of one micro-batch is evaluated together with its update, and a GPU tells only afterwards."""
    found, updated = learner(), []
    state = {name: bytes(memoryview(value)) for name, value in found.state().items()}

    def refuse() -> None:
        updated.append(adapter_bytes(found.draft))
        raise RuntimeError(METAL)

    with monkeypatch.context() as patched:
        patched.setattr(mx, "synchronize", refuse)
        with pytest.raises(RuntimeError, match="Insufficient Memory"):
            found.train(window(EXAMPLES), 0, 0, nothing)
    assert {f"adapter.{name}": value for name, value in updated[0].items()}.items().isdisjoint(state.items())
    assert {name: bytes(memoryview(value)) for name, value in found.state().items()} == state


LONG = replace(EXAMPLES[0], record_id="long", ids=EXAMPLES[0].ids * 10)


def test_of_a_text_that_does_not_fit_alone_the_beginning_is_trained_on():
    found = learner(fit=Fit(room=96.0, most=96.0, recompute=True), texts=[*EXAMPLES, LONG])
    fitting = LONG.shortened(97 - LONG.prompt_length)
    alone = learner(texts=[*EXAMPLES, LONG], fit=Fit(recompute=True))
    expected = alone.train(window([*EXAMPLES[1:4], fitting]), 0, 0, nothing)
    result = found.train(window([*EXAMPLES[1:4], LONG]), 0, 0, nothing)
    assert result.skipped == ()
    assert result.tokens == expected.tokens == sum(len(one.labels) for one in [*EXAMPLES[1:4], fitting])
    assert result.acceptance == pytest.approx(expected.acceptance, rel=1e-5)


def test_a_text_whose_prompt_does_not_fit_is_left_out_by_name_and_the_rest_is_trained_on():
    prompt = replace(LONG, prompt_length=100)
    found = learner(fit=Fit(room=96.0, most=96.0, recompute=True))
    result = found.train(window([*EXAMPLES[1:4], prompt]), 0, 0, nothing)
    assert [one.record_ids for one in result.skipped] == [("long",)]
    assert "prompt of 100 tokens does not fit into memory" in result.skipped[0].reason
    assert "data.max_prompt_length" in result.skipped[0].reason
    assert result.tokens == sum(len(one.labels) for one in EXAMPLES[1:4])
    assert result.skipped_in_row == 0


def within(found: Learner, allowed: Budget | None, lines: list[str]) -> OutOfMemoryFallback:
    return OutOfMemoryFallback(found, [EXAMPLES], allowed, lines.append)


def test_another_error_is_not_tried_again():
    calls: list[int] = []

    def work() -> None:
        calls.append(1)
        raise RuntimeError("[matmul] shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        within(learner(), None, []).run(work, [EXAMPLES], droppable=True)
    assert calls == [1]


@pytest.mark.parametrize("text", [METAL, CUDA])
def test_each_step_down_is_said_once_and_the_work_done_again(text):
    found, lines = learner(), []

    def work() -> int:
        if len(found.fit.parts(EXAMPLES)[0]) < 4:
            raise RuntimeError(text)
        return 7

    assert within(found, None, lines).run(work, [EXAMPLES], droppable=True) == 7
    assert len(lines) == 3
    assert all(text in line and "trying again" in line for line in lines)
    assert "computed again in the backward pass" in lines[0]
    assert "in parts" in lines[1]


def test_python_s_own_want_of_memory_is_one_too():
    found = learner()

    def work() -> int:
        if len(found.fit.parts(EXAMPLES)[0]) < 4:
            raise MemoryError("std::bad_alloc")
        return 7

    assert within(found, None, []).run(work, [EXAMPLES], droppable=True) == 7


def test_what_a_refused_try_took_is_not_charged_to_the_next():
    found, lines = learner(), []
    guard = within(found, Budget(mx.get_active_memory() + (8 << 20), strict=True), lines)

    def work() -> None:
        if not found.fit.recompute:
            mx.eval(mx.ones((4 << 20,)) + 1)
            raise RuntimeError(METAL)

    guard.run(work, [EXAMPLES], droppable=True)
    assert len(lines) == 1
    assert found.fit == Fit(recompute=True)
    assert guard.peak >= 16 << 20


@pytest.mark.slow
def test_texts_alone_that_are_refused_whatever_is_left_of_them_end_the_training():
    texts = [replace(EXAMPLES[0], record_id=f"long{i}", ids=EXAMPLES[0].ids * 20) for i in range(2)]
    found = learner(texts=texts)

    def work() -> None:
        raise RuntimeError(METAL)

    guard = OutOfMemoryFallback(found, [[one] for one in texts], None, lambda _line: None)
    with pytest.raises(TrainingFailed, match="one example alone"):
        guard.run(work, [[one] for one in texts], droppable=True)


def test_what_took_more_than_allowed_is_cut_smaller_from_then_on():
    found, lines = learner(), []
    small = Budget(mx.get_active_memory() + (8 << 20), strict=False)
    guard = within(found, small, lines)
    for _ in range(10):
        guard.run(lambda: mx.eval(mx.ones((4 << 20,)) + 1), [EXAMPLES], droppable=True)
    assert found.fit.is_smallest([EXAMPLES])
    assert guard.peak >= 16 << 20
    assert all("are allowed" in line for line in lines)
    assert "going on as long as it works" in lines[-1]
    assert len(set(lines)) < 10


def test_a_number_that_is_a_promise_is_kept_by_failing():
    found = learner(fit=Fit(room=16.0, most=32.0, recompute=True))
    small = Budget(mx.get_active_memory() + (8 << 20), strict=True)
    with pytest.raises(TrainingFailed, match=r"allowed, one example at a time; take training\.teacher logged, lower"):
        within(found, small, []).run(lambda: mx.eval(mx.ones((4 << 20,)) + 1), [EXAMPLES], droppable=True)


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("recompute", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_an_estimate_holds_what_a_pass_then_takes(recompute):
    """Within a quarter, on a model that is large enough for the constants not to count."""
    draft = tiny_llama(width=128, layers=4, seed=2, sharpness=1.0)
    found = learner(draft)
    long = [replace(one, ids=(one.ids * 40)[:257], prompt_length=200) for one in EXAMPLES]
    fit = estimate_fit(found, [long], Budget(1 << 40, strict=False), 0, 0)
    assert not fit.changes([long])
    found.fit = replace(fit, recompute=recompute)
    for batch in (long, long[:4], [replace(one, ids=one.ids[:129], prompt_length=100) for one in long]):
        batch = [replace(example, sampler=replace(example.sampler, temperature=0.0)) for example in batch]
        taken = measured(found, batch)
        if recompute:
            assert taken < fit.cost.of(batch)
        else:
            assert 0.8 < fit.cost.of(batch) / taken < 1.35


@pytest.mark.usefixtures("on_the_cpu")
def test_a_budget_that_binds_is_kept_and_by_parts_first():
    found = learner(tiny_llama(width=128, layers=4, seed=2, sharpness=1.0))
    long = [
        replace(one, ids=(one.ids * 40)[:257], prompt_length=200, sampler=replace(one.sampler, temperature=0.0))
        for one in EXAMPLES
    ]
    free = estimate_fit(found, [long], Budget(1 << 40, strict=False), 0, 0)
    allowed = Budget(mx.get_active_memory() + int(free.cost.of(long) / 3), strict=True)
    found.fit = estimate_fit(found, [long], allowed, 0, 0)
    assert not found.fit.recompute
    assert 3 <= len(found.fit.parts(long)[0]) <= 6
    guard = within(found, allowed, [])
    guard.run(lambda: found.train(window(long), 0, 0, nothing), [long], droppable=True)
    mx.clear_cache()
    assert guard.peak <= allowed.bytes


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("name", ["qwen3_5"])
@pytest.mark.slow
def test_recurrent_layers_that_keep_too_much_for_a_token_are_computed_again_by_themselves(name):
    found = learner(model_zoo.build(name))
    one = EXAMPLES[0]
    long = [replace(one, ids=(one.ids * 40)[:193], prompt_length=150, sampler=replace(one.sampler, temperature=0.0))]
    budget = Budget(1 << 40, strict=False)
    kept = estimate_fit(found, [long], budget, 0, 0)
    assert not kept.recompute
    found.fit = replace(kept, recompute=True)
    again = measured(found, long)
    found.fit = kept
    most = (again + measured(found, long)) / 2  # too little to keep them all
    found.fit = estimate_fit(found, [long], Budget(mx.get_active_memory() + int(most / SAFETY), strict=True), 0, 0)
    assert found.fit.recompute
    assert len(found.fit.fitted(long[0]).labels) > 0


def measured(learner: Learner, batch: Sequence[Example]) -> int:
    """Bytes that a pass takes."""
    learner._evaluated_with_gradient(batch)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    learner._evaluated_with_gradient(batch)
    return mx.get_peak_memory() - before


# Whole runs ----------------------------------------------------------------------------------------------------------

SETTINGS = {"epochs": 2, "batch_size": 4, "gradient_accumulation_steps": 2, "replay_ratio": 0.0, "warmup_steps": 1}


def workshop(root: Path, **settings) -> Workshop:
    shop = Workshop(root, {**SETTINGS, "steps_per_eval": 2, "save_every": 1, **settings})
    shop.write(records_of(shop.pair, 14))
    shop.write(records_of(shop.pair, 4, split="validation"))
    return shop


def said(shop: Workshop) -> list[str]:
    return (shop.runs / "r0001" / "train.log").read_text().splitlines()


def weights(result) -> dict[str, mx.array]:
    return mx.load(str(Path(result.path) / "adapters.safetensors"))


def test_a_run_that_is_refused_memory_ends_as_one_that_is_not(tmp_path, monkeypatch):
    expected = workshop(tmp_path / "free", loss="kl").train()
    tried = refusing(monkeypatch, lambda _, examples: len(examples) > 2, CUDA)
    shop = workshop(tmp_path / "narrow", loss="kl")
    target, kind = snapshot(shop.pair.target), type(shop.pair.draft.layers[0])
    found = shop.train()
    assert (found.steps, found.tokens, found.skipped_batches) == (expected.steps, expected.tokens, 0)
    ours, theirs = weights(expected), weights(found)
    assert max(mx.abs(ours[name] - theirs[name]).max().item() for name in ours) < 1e-4
    assert len([line for line in said(shop) if "out of memory" in line]) == 2
    assert tried.count(4) == 2  # as it was, and with activations computed again; never after that
    assert snapshot(shop.pair.target) == target
    assert all(type(layer) is kind for layer in shop.pair.draft.layers)


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.slow
def test_a_run_that_was_cut_smaller_is_resumed_to_the_same_bits(tmp_path, monkeypatch, k):
    tried = refusing(monkeypatch, lambda _, examples: len(examples) > 2)
    expected = workshop(tmp_path / "straight", lora={"rank": 4, "dropout": 0.2}).train()
    shop, stop = workshop(tmp_path / "resumed", lora={"rank": 4, "dropout": 0.2}), StopRequest()
    with pytest.raises(Interrupted):
        shop.train(stop=stop, on_step=lambda done, _: setattr(stop, "requested", done >= k))
    (progress,) = (shop.runs / "r0001" / "checkpoints").glob("c*/progress.json")
    assert orjson.loads(progress.read_bytes())["fit"]["recompute"] is True
    tried.clear()
    found = shop.resume()
    assert max(tried) == 2
    assert {n: v.tolist() for n, v in weights(found).items()} == {n: v.tolist() for n, v in weights(expected).items()}


def test_a_run_that_nothing_bounds_says_nothing_of_memory(tmp_path):
    shop = workshop(tmp_path)
    shop.train()
    assert not any("memory" in line.replace("peak memory", "") for line in said(shop))


def test_a_run_that_is_refused_whatever_it_does_fails_and_says_what_to_lower(tmp_path, monkeypatch):
    refusing(monkeypatch, lambda _, examples: True)
    with pytest.raises(TrainingFailed, match=r"one example alone.*Insufficient Memory.*lower data\.max_output_length"):
        workshop(tmp_path).train()


def test_a_validation_that_is_refused_is_made_in_parts(tmp_path, monkeypatch):
    work = Learner._evaluated

    def evaluated(self, examples):
        if len(examples) > 1:
            raise RuntimeError(CUDA)
        return work(self, examples)

    expected = workshop(tmp_path / "free", loss="ce").train()
    monkeypatch.setattr(Learner, "_evaluated", evaluated)
    found = workshop(tmp_path / "narrow", loss="ce").train()
    assert found.val_loss_before == pytest.approx(expected.val_loss_before, rel=1e-5)


def test_a_validation_that_is_refused_one_by_one_fails(tmp_path, monkeypatch):
    def evaluated(self, examples):
        raise RuntimeError(CUDA)

    monkeypatch.setattr(Learner, "_evaluated", evaluated)
    with pytest.raises(TrainingFailed, match="one example alone"):
        workshop(tmp_path).train()


def test_a_budget_below_the_models_is_refused_before_the_first_step(tmp_path):
    shop = workshop(tmp_path, memory=1e-5)
    with pytest.raises(TrainingFailed, match=r"of the 1e-05 GB allowed.*training\.memory"):
        shop.train()
    assert not any(map(is_recomputed, shop.pair.draft.layers))


def test_the_most_that_was_held_is_in_the_result_and_in_every_report(tmp_path):
    shop = workshop(tmp_path, steps_per_report=1)
    found = shop.train()
    rows = [orjson.loads(line) for line in (shop.runs / "r0001" / "metrics.jsonl").read_bytes().splitlines()]
    peaks = [row["peak_memory_gb"] for row in rows if row["kind"] == "train"]
    assert 0 < peaks[0] <= peaks[-1] <= found.peak_memory_gb < 1
    assert peaks == sorted(peaks)


def test_limits_are_what_they_were_after_a_run(tmp_path):
    def limits() -> tuple[int, int]:
        found = mx.set_memory_limit(1 << 33), mx.set_cache_limit(1 << 24)
        mx.set_memory_limit(found[0])
        mx.set_cache_limit(found[1])
        return found

    before = limits()
    workshop(tmp_path, memory=0.5).train()
    assert limits() == before


def test_auto_asks_the_device(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "read_device", lambda: memory.DeviceMemory(1000, "available RAM"))
    with pytest.raises(TrainingFailed, match="allowed"):
        workshop(tmp_path).train()
