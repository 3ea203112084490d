"""What a training step on a real model costs: python benchmarks/real_training.py smollm2 [--draft self:4]

One half: steps of draftloop (`lk`, the logged teacher) and of mlx-lm's trainer (cross-entropy) in turns, on adapters of
one shape and the same micro-batches of what the target said. The other half: what a step is made of, each part timed
alone, and its floor: the matrix products that it cannot do without, and one exponential per logit.
"""

from __future__ import annotations

import prepared  # noqa: F401

# isort: split
import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import results
from mlx import nn
from real_prompts import varied_instructions
from results import Figure
from speed_training import Turns, train_in_turns
from speed_world import Timed

from draftloop.cli.tables import print_table
from draftloop.config import Models, Training
from draftloop.data.records import Sampler
from draftloop.data.teacher_top_k import TopK
from draftloop.decoding.sampling_filters import sampling_log_probs
from draftloop.decoding.top_k import top_k_tokens
from draftloop.models import adapter as lora
from draftloop.models.pair import Pair, load_pair
from draftloop.prompts.prompt import Prompt, encode_prompt
from draftloop.training.batches import make_batch
from draftloop.training.dataset.batch_plan import make_batch_plan
from draftloop.training.dataset.examples import Example
from draftloop.training.dataset.on_policy import sample_outputs
from draftloop.training.forward import make_forward
from draftloop.training.step import Learner
from draftloop.training.teacher import LoggedTeacher

sys.path.append(str(Path(__file__).resolve().parents[1]))  # what makes the models is no part of the package
from scripts.real_models import SOURCES, real_model

TOKENS, PROMPTS, STEPS, WARM_UP, TIMES, TOP_K = 48, 64, 14, 2, 3, 64
SAMPLER = Sampler(temperature=0.7, top_p=0.95, min_p=0.0, top_k=0, seed=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=sorted(SOURCES))
    parser.add_argument("--draft", default="self:4", help="as models.draft; default: self:4")
    given = parser.parse_args()
    models = Models(target=str(real_model(given.model)), draft=given.draft)
    ours, other = load_pair(models), load_pair(models)
    settings = Training(teacher="logged")
    texts = target_texts(ours)
    plan = make_batch_plan(texts, {}, settings, STEPS)
    for pair in (ours, other):
        lora.attach_fresh(pair.draft, lora.shape_for(pair.draft, settings.lora), settings.seed)
    draft = make_forward(ours.draft, "draft", print)
    learner = Learner(ours.draft, draft, logged_teacher(ours, texts), ours.width, settings, len(plan.windows))
    turns = Turns()
    train_in_turns(other, learner, plan, turns)
    speeds = {way: Timed.of(speeds_of(turns, way)) for way in ("ours", "theirs")}
    ratio = Timed.of([theirs / own for own, theirs in zip(turns.ours[WARM_UP:], turns.theirs[WARM_UP:], strict=True)])
    parts = parts_of_a_step(ours, learner, plan.windows[WARM_UP].micro_batches[0])
    figure = Figure("supervised tokens a second, lk over mlx_lm.lora", ratio.median, "x", at_least=1.0)
    rows = [
        {"way": "draftloop, lk, logged teacher", "speed": speeds["ours"].median, "spread": speeds["ours"].spread},
        {"way": "mlx_lm.lora, cross-entropy", "speed": speeds["theirs"].median, "spread": speeds["theirs"].spread},
    ]
    print_table(list(rows[0]), [list(row.values()) for row in rows])
    print_table(["part", "seconds"], [[part, f"{seconds:.2f}"] for part, seconds in parts.items()])
    conditions = {
        "target": given.model,
        "draft": given.draft,
        "lora": settings.lora.model_dump(mode="json"),
        "micro_batch": f"at most {settings.batch_size} texts and {settings.batch_tokens:,} supervised tokens",
        "output_tokens": TOKENS,
        "steps": len(turns.ours) - WARM_UP,
    }
    table = [{"part": part, "seconds": seconds} for part, seconds in parts.items()]
    results.write(f"real_training_{given.model}", conditions, [figure], rows=rows, parts=table)


def target_texts(pair: Pair) -> list[Example]:
    """What the target says to some instructions."""
    asked = []
    for number, text in enumerate(varied_instructions("collect", PROMPTS)):
        ids = encode_prompt(Prompt(text), pair.tokenizer, chat_template=True, max_length=1 << 20)
        assert isinstance(ids, list)
        asked.append(Example(str(number), "", (*ids, *(0,) * TOKENS), len(ids), SAMPLER))
    return sample_outputs(pair, asked, 1, own=False, seed=0, enough=lambda: False, on_sample=lambda *_: None)


def logged_teacher(pair: Pair, texts: list[Example]) -> LoggedTeacher:
    """With what collect-data would have kept of these outputs."""
    target = make_forward(pair.target, "target", print)
    kept = {}
    for text in texts:
        logits = target(mx.array([text.inputs]), mx.array(list(text.positions)))
        tokens, log_probs, tail = top_k_tokens(mx.exp(sampling_log_probs(logits, text.sampler, pair.width)), TOP_K)
        kept[text.record_id] = TopK(np.array(tokens.astype(mx.int32)), np.array(log_probs), np.array(tail))
    return LoggedTeacher(kept)


def speeds_of(turns: Turns, way: str) -> list[float]:
    """Supervised tokens a second in each step after the first ones."""
    seconds = getattr(turns, way)
    return [tokens / took for tokens, took in zip(turns.tokens[WARM_UP:], seconds[WARM_UP:], strict=True)]


def parts_of_a_step(pair: Pair, learner: Learner, examples: tuple[Example, ...]) -> dict[str, float]:
    """Seconds of each part, alone; the last ones are what no way of making it could do without."""
    batch = make_batch(examples)
    forward, teacher = learner.forward, learner.teacher.teach(batch)
    rows = forward.hidden(batch.inputs, batch.positions)
    mx.eval(rows)
    loss, _ = learner._loss(batch, teacher, learner.accepted)

    def hidden(parameters: Any) -> mx.array:
        pair.draft.update(parameters)
        return mx.sum(forward.hidden(batch.inputs, batch.positions))

    parameters = pair.draft.trainable_parameters()
    width, vocabulary = rows.shape[1], pair.width
    matrix, logits = mx.random.normal((vocabulary, width)), mx.random.normal((batch.size, vocabulary))
    mx.eval(matrix, logits)
    of_loss = nn.value_and_grad(pair.draft, lambda given: loss.sums(given, learner.piece).loss)
    found = {
        "layers, forward": seconds(lambda: forward.hidden(batch.inputs, batch.positions)),
        "layers, forward and gradient": seconds(lambda: mx.grad(hidden)(parameters)),
        "head and loss, forward": seconds(lambda: loss.values(rows, learner.piece)),
        "head and loss, forward and gradient": seconds(lambda: of_loss(rows)),
        "floor: the head's two matrix products": seconds(lambda: (rows @ matrix.T, logits @ matrix)),
        "floor: one exponential per logit": seconds(lambda: mx.exp(logits)),
    }
    pair.draft.update(parameters)
    return found


def seconds(work: Callable[[], Any]) -> float:
    """The least of a few times."""
    taken = []
    for _ in range(TIMES + 1):
        began = time.perf_counter()
        mx.eval(work())
        taken.append(time.perf_counter() - began)
    return min(taken[1:])


if __name__ == "__main__":
    main()
