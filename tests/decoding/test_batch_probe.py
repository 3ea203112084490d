"""A batch is used where its rows are what they are alone, and nowhere else."""

from __future__ import annotations

import mlx.core as mx
import pytest
import zoo
from tiny import tiny_llama

from draftloop.decoding import batched_generation, prompt_caches
from draftloop.decoding.batch_probe import batches_exactly
from scripts import model_checks

TOGETHER = ("llama", "qwen3_5", "mamba", "nemotron_h", "rwkv7", "gpt_oss", "gemma3n", "baichuan_m1")
ALONE = ("afm7", "llama4", "deepseek_v41", "minimax_m3_vl")


@pytest.mark.parametrize(("name", "expected"), [*((n, True) for n in TOGETHER), *((n, False) for n in ALONE)])
def test_unequal_prompts_have_the_outputs_that_they_have_alone(name: str, expected: bool) -> None:
    assert batches_exactly(zoo.model(name)) == expected
    assert model_checks.batched_output(zoo.pair(name), 12) is None


@pytest.mark.parametrize("name", ALONE[:1])
def test_the_check_would_notice_a_batch_that_is_wrong(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batched_generation, "batches_exactly", lambda _: True)
    assert "in a batch, the output of" in str(model_checks.batched_output(zoo.pair(name), 12))


@pytest.mark.parametrize("name", ["qwen3_5", "gpt_oss", "falcon_h1"])
def test_a_prompt_of_one_token_takes_part(name: str) -> None:
    model = zoo.model(name)
    rows = prompt_caches.read(model, [(1,), (2,), (3, 4, 5)], 4, 64)
    assert rows is not None
    assert len(rows) == 3
    for row, prompt in zip(rows, [(1,), (2,), (3, 4, 5)], strict=True):
        logits = model(mx.array([[prompt[-1]]]), cache=row)[0, -1]
        alone = model(mx.array([prompt]))[0, -1]
        assert mx.abs(logits - alone).max().item() < 2e-3 * mx.std(alone).item()


def test_the_bytes_of_a_row_count_a_state_once_and_keys_by_token() -> None:
    llama = tiny_llama()
    assert prompt_caches.row_bytes(llama).of(100) == pytest.approx(100 * prompt_caches.row_bytes(llama).of(1), rel=0.02)
    mamba = zoo.model("mamba2")
    assert prompt_caches.row_bytes(mamba).of(100) == prompt_caches.row_bytes(mamba).of(10)
    windowed = zoo.model("gpt_oss")
    assert prompt_caches.row_bytes(windowed).of(400) < 4 * prompt_caches.row_bytes(windowed).of(100)
