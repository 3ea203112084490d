"""A training step of draftloop and one of mlx-lm's trainer, in turns: python benchmarks/speed_training.py

Both train an adapter of one shape on the embedded draft, on the same micro-batches of the target's texts: draftloop by
`lk` on whole distributions, checked and clipped, `mlx_lm.lora` by cross-entropy on the tokens alone. mlx-lm's trainer
asks for a batch before each of its steps: there draftloop makes its own step. Only supervised tokens are counted.
"""

from __future__ import annotations

import prepared  # noqa: F401

# isort: split
import contextlib
import io
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import results
import speed_world
from mlx_lm.tuner.trainer import TrainingArgs
from mlx_lm.tuner.trainer import train as mlx_lm_train
from results import Figure
from speed_world import Timed

from draftloop import reference
from draftloop.cli.tables import print_table
from draftloop.config import Models, Training
from draftloop.data.records import Sampler
from draftloop.models import adapter as lora
from draftloop.models.pair import Pair, load_pair
from draftloop.training.batches import make_batch
from draftloop.training.dataset.batch_plan import BatchPlan, make_batch_plan
from draftloop.training.dataset.examples import Example, round_up
from draftloop.training.dataset.on_policy import sample_outputs
from draftloop.training.forward import make_forward
from draftloop.training.step import Learner
from draftloop.training.teacher import LiveTeacher

TOKENS, PROMPTS, STEPS, WARM_UP = 64, 150, 120, 20
MEMORY_MB = 1_000
MLX_LM_STEP = 32  # ids that mlx-lm's batches are rounded up to


@dataclass
class Turns:
    """Seconds of each step."""

    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


def main() -> None:
    given = speed_world.options(__doc__).parse_args()
    prompts, steps, warm_up = (20, 6, 2) if given.quick else (PROMPTS, STEPS, WARM_UP)
    rows, ratios = [], []
    for domain in reference.DOMAINS:
        ours, other = load_pair(Models()), load_pair(Models())
        texts = target_texts(ours, domain, prompts)
        settings = Training()
        plan = make_batch_plan(texts, {}, settings, steps)
        for pair in (ours, other):
            lora.attach_fresh(pair.draft, lora.shape_for(pair.draft, settings.lora), settings.seed)
        learner, seconds = make_learner(ours, texts, plan, settings)
        turns = Turns()
        train_in_turns(other, learner, plan, turns)
        for way, found in (("draftloop, lk", turns.ours), ("mlx_lm.lora, cross-entropy", turns.theirs)):
            speeds = [n / s for n, s in zip(turns.tokens[warm_up:], found[warm_up:], strict=True)]
            timed = Timed.of(speeds)
            rows.append(
                {"domain": domain, "way": way, "speed": timed.median, "unit": "tokens/s", "spread": timed.spread}
            )
        read = sum(len(text.labels) for text in texts) / seconds
        rows.append(
            {"domain": domain, "way": "the target reads, once", "speed": read, "unit": "tokens/s", "spread": 0.0}
        )
        pairs = zip(turns.ours[warm_up:], turns.theirs[warm_up:], strict=True)
        ratios.append(Timed.of([theirs / ours for ours, theirs in pairs]).median)
    figure = Figure("supervised tokens a second, lk over mlx_lm.lora", min(ratios), "x", at_least=1.0)
    print_table(list(rows[0]), [[f"{v:.3g}" if isinstance(v, float) else v for v in row.values()] for row in rows])
    print_table(["figure", "measured", "at least"], [[figure.figure, f"{figure.value:.3f}", figure.at_least]])
    if not given.quick:
        conditions = {
            "pair": "embedded",
            "micro_batch": f"at most {settings.batch_size} texts and {settings.batch_tokens:,} supervised tokens",
            "output_tokens": TOKENS,
            "lora": settings.lora.model_dump(mode="json"),
            "steps": steps - warm_up,
        }
        results.write("speed_training", conditions, [figure], rows=rows)


def target_texts(pair: Pair, domain: str, count: int) -> list[Example]:
    """What the target says to the first prompts of a domain."""
    sampler = Sampler(0.8, 1.0, 0.0, 0, 0)
    asked = [
        Example(str(i), domain, ids + (0,) * TOKENS, len(ids), sampler)
        for i, ids in enumerate(speed_world.prompt_ids(pair, domain, count))
    ]
    return sample_outputs(pair, asked, 1, own=False, seed=0, enough=lambda: False, on_sample=lambda *_: None)


def make_learner(pair: Pair, texts: list[Example], plan: BatchPlan, settings: Training) -> tuple[Learner, float]:
    """draftloop's, whose teacher has read every text; and the seconds that took, once a training."""
    teacher = LiveTeacher(make_forward(pair.target, "target", print), pair.width, texts, MEMORY_MB, print)
    began = time.perf_counter()
    for text in texts:
        mx.eval(teacher.teach(make_batch([text])).parts)
    seconds = time.perf_counter() - began
    return Learner(
        pair.draft, make_forward(pair.draft, "draft", print), teacher, pair.width, settings, len(plan.windows)
    ), seconds


def train_in_turns(pair: Pair, learner: Learner, plan: BatchPlan, turns: Turns) -> None:
    """mlx-lm's trainer on `pair`, and the learner's steps in between."""
    windows = plan.windows

    def batches(**_: Any) -> Iterator[tuple[mx.array, mx.array]]:
        for number, window in enumerate(windows):
            (examples,) = window.micro_batches
            began = time.perf_counter()
            yield _as_arrays(examples)
            turns.theirs.append(time.perf_counter() - began)
            began = time.perf_counter()
            following = windows[number + 1] if number + 1 < len(windows) else None
            learner.train(window, number, 0, lambda: None, following=following)
            turns.ours.append(time.perf_counter() - began)
            turns.tokens.append(sum(len(example.labels) for example in examples))

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        arguments = TrainingArgs(
            iters=len(windows) + 1,  # it asks for a batch more than it trains on
            steps_per_report=10**9,
            steps_per_save=10**9,
            adapter_file=str(Path(folder) / "adapters.safetensors"),
        )
        optimizer = optim.AdamW(learner.peak)
        mlx_lm_train(pair.draft, optimizer, windows, args=arguments, iterate_batches=batches)


def _as_arrays(examples: tuple[Example, ...]) -> tuple[mx.array, mx.array]:
    """As mlx-lm's own batches: ids, and the positions of the first and the last label."""
    longest = 1 + round_up(max(len(example.ids) for example in examples), MLX_LM_STEP)
    ids = np.zeros((len(examples), longest), np.int32)
    for row, example in enumerate(examples):
        ids[row, : len(example.ids)] = example.ids
    return mx.array(ids), mx.array([(example.prompt_length, len(example.ids) - 1) for example in examples])


if __name__ == "__main__":
    main()
