"""What a model has to do to be called working, each as a function that gives what is wrong, or None.

Models are the tiny random ones of `model_zoo`, in float32; a draft is the target with noise. What is compared with is
mlx-lm itself, or a pass that takes nothing back.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.generate import generate_step
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load_model, save_config, save_model

from draftloop.caches import NoWayBack, RewindableCache, find_way, is_state, leaves_of, read_whole
from draftloop.data.records import Sampler
from draftloop.decoding.batched_generation import OutputRequest, generate_batched
from draftloop.decoding.decoder import Decoding, Settings
from draftloop.decoding.draft_length import AdaptiveDraftLength, LatencyProfile
from draftloop.decoding.sampling_filters import sampling_log_probs
from draftloop.errors import AdapterError
from draftloop.export.fuse import Quantization, fuse
from draftloop.models import adapter as lora
from draftloop.models.adapter_format import AdapterConfig
from draftloop.models.pair import Pair
from draftloop.models.unfit_layers import find_unfit
from draftloop.training.memory.recompute import set_recompute
from scripts import model_zoo

PROMPT = tuple(range(20))
PROMPT_LENGTHS = (5, 23, 40)
GREEDY = Sampler(0.0, 1.0, 0.0, 0, 0)
NEAR_TIE = 1e-3  # of two logits, between which a pass over one token and one over several may decide differently
MOST_OFF = 1e-4  # of a probability
STEPS, DIRECTIONS = (3e-4, 1e-4, 3e-5, 1e-5), 5  # of finite differences
_PROFILE = LatencyProfile(t_draft=0.3, t_target=tuple(1.0 + 0.05 * k for k in range(9)))


def logits_that_say_nothing(model: nn.Module) -> str | None:
    """A model whose logits are the same whatever it has read would pass every check."""
    logits = read_whole(model, mx.array([PROMPT]))[0]
    varied = len(set(mx.argmax(logits, axis=-1).tolist())) > 2 and mx.std(logits, axis=-1).min().item() > NEAR_TIE
    return None if varied else "the logits of the tiny one do not depend on what it reads"


def greedy_output(pair: Pair, length: int, counts: Sequence[int | None]) -> str | None:
    """Greedy decoding against mlx-lm's own, for each draft length; None is the adaptive one."""
    expected = [int(token) for token, _ in generate_step(mx.array(PROMPT), pair.target, max_tokens=length)]
    for count in counts:
        settings = Settings(GREEDY, "greedy", 8 if count is None else count, length)
        policy = AdaptiveDraftLength(_PROFILE, 8) if count is None else None
        output = [token for round_ in Decoding(pair, PROMPT, settings, policy) for token in round_.tokens]
        at = next((i for i, pair_ in enumerate(zip(output, expected, strict=True)) if pair_[0] != pair_[1]), None)
        if at is not None and not _is_near_tie(pair.target, [*PROMPT, *expected[:at]]):
            return f"the greedy output differs from mlx-lm's from token {at} on, with K = {count or 'adaptive'}"
    return None


def _is_near_tie(model: nn.Module, tokens: Sequence[int]) -> bool:
    first, second = sorted(np.array(read_whole(model, mx.array([tokens]))[0, -1], np.float64))[:-3:-1]
    return bool(first - second < NEAR_TIE)


def logged_probabilities(pair: Pair, length: int, seed: int = 3) -> str | None:
    """p and q of a sampled output against those of a pass over the finished output."""
    sampler = Sampler(0.9, 1.0, 0.0, 0, seed)
    rounds = list(Decoding(pair, PROMPT, Settings(sampler, "rejection", 4, length)))
    output = [token for round_ in rounds for token in round_.tokens]
    tokens, start = mx.array([[*PROMPT, *output]]), len(PROMPT) - 1
    p, q = (
        np.exp(np.array(sampling_log_probs(read_whole(model, tokens)[0, start:], sampler, pair.width)))
        for model in (pair.target, pair.draft)
    )
    worst = 0.0
    for round_ in rounds:
        for at, one in enumerate(round_.verified, round_.start):
            worst = max(worst, abs(math.exp(one.token_log_p) - float(p[at, one.token])))
            worst = max(worst, abs(math.exp(one.draft_log_q) - float(q[at, one.draft_token])))
    return None if worst <= MOST_OFF else f"logged probabilities are off by {worst:.2g}"


def batched_output(pair: Pair, length: int) -> str | None:
    """Prompts of unequal lengths generated together against each by mlx-lm alone."""
    prompts = [tuple(i % pair.width for i in range(count)) for count in PROMPT_LENGTHS]
    requests = [OutputRequest(prompt, GREEDY, length) for prompt in prompts]
    found = {
        one.place: one.tokens
        for one in generate_batched(pair.target, requests, width=pair.width, stop_tokens=frozenset())
    }
    for place, prompt in enumerate(prompts):
        expected = tuple(int(token) for token, _ in generate_step(mx.array(prompt), pair.target, max_tokens=length))
        at = next((i for i, pair_ in enumerate(zip(found[place], expected, strict=True)) if pair_[0] != pair_[1]), None)
        if at is not None and not _is_near_tie(pair.target, [*prompt, *expected[:at]]):
            return f"in a batch, the output of {len(prompt)} prompt tokens differs from token {at} on"
    return None


def broken_rewinding(model: nn.Module) -> str | None:
    """Keys that are cut while states are left, or, where there is no state, nothing taken back: the probe's answer."""

    def broken(cache: RewindableCache, count: int) -> None:
        leaves = leaves_of(cache.layers)
        if any(map(is_state, leaves)):
            for leaf in leaves:
                if not is_state(leaf):
                    leaf.trim(count)

    with patch.object(RewindableCache, "rewind", broken):
        try:
            find_way(model)
        except NoWayBack:
            return None
    return "a broken way back is taken for an exact one"


def gradient(model: nn.Module, recompute: bool = False) -> str | None:
    """The gradient of an adapter against finite differences; and a step moves the adapter alone."""
    try:
        unfit = find_unfit(model)
    except AdapterError as error:
        return str(error)
    inside, outside = lora.adaptable_keys(model)
    lora.attach_fresh(model, AdapterConfig(2, 1.0, keys=tuple(sorted((inside | outside) - set(unfit)))), seed=0)
    set_recompute(model, recompute)
    try:
        return _gradient_of_an_adapter(model)
    finally:
        set_recompute(model, False)
        lora.detach(model)
        model.eval()


def exported_adapter(name: str) -> str | None:
    """A draft's adapter, as mlx-lm loads it from its files."""
    model = adapted(name)
    expected = read_whole(model, mx.array([PROMPT]))
    with TemporaryDirectory() as folder:
        lora.save_adapter(model, Path(folder))
        again = load_adapters(model_zoo.build(name), folder).eval()
        off = _off(read_whole(again, mx.array([PROMPT])), expected)
    return None if off <= MOST_OFF else f"with the exported adapter, mlx-lm's logits are off by {off:.2g}"


def exported_draft(name: str) -> str | None:
    """A draft with the adapter in its weights, as mlx-lm loads it from its files."""
    model = adapted(name)
    expected = read_whole(model, mx.array([PROMPT]))
    config = fuse(model, model_zoo.specimen(name).config, Quantization())
    with TemporaryDirectory() as folder:
        save_model(folder, model)
        save_config(config, Path(folder) / "config.json")
        again, _ = load_model(Path(folder))
        off = _off(read_whole(again.eval(), mx.array([PROMPT])), expected)
    return None if off <= MOST_OFF else f"fused and loaded by mlx-lm, its logits are off by {off:.2g}"


def adapted(name: str) -> nn.Module:
    """A model with a random adapter on every layer that can carry one."""
    model = model_zoo.build(name)
    inside, outside = lora.adaptable_keys(model)
    keys = tuple(sorted((inside | outside) - set(find_unfit(model))))
    lora.attach_fresh(model, AdapterConfig(2, 1.0, keys=keys), seed=0)
    lora.load_parameters(model, _random_weights(model))
    return model


def _off(found: mx.array, expected: mx.array) -> float:
    """The largest difference, in standard deviations of what is expected."""
    return float((mx.abs(found - expected).max() / mx.std(expected)).item())


def _random_weights(model: nn.Module) -> dict[str, mx.array]:
    return {
        name: 0.1 * mx.random.normal(leaf.shape, key=mx.random.key(n))
        for n, (name, leaf) in enumerate(sorted(lora.adapter_parameters(model).items()))
    }


def _gradient_of_an_adapter(model: nn.Module) -> str | None:
    tokens = mx.array([PROMPT[:12], PROMPT[4:16]])
    weights = _random_weights(model)
    lora.load_parameters(model, weights)
    model.train()

    def loss(model: nn.Module) -> mx.array:
        return nn.losses.cross_entropy(read_whole(model, tokens[:, :-1]), tokens[:, 1:]).mean()

    frozen = [values for name, values in tree_flatten(model.parameters()) if ".lora_" not in name]
    kept = [mx.array(values) for values in frozen]
    _, gradients = nn.value_and_grad(model, loss)(model)
    flat = dict(tree_flatten(gradients))
    if flat.keys() != weights.keys():
        return "the gradient is not that of the adapter alone"

    def off(number: int, step: float) -> float:
        """Of a difference over so long a step along a direction; where it crosses from expert to expert it is large."""
        names = sorted(weights)
        keys = (mx.random.key(1000 * number + i) for i in range(len(names)))
        direction = {
            name: mx.random.normal(weights[name].shape, key=key) for name, key in zip(names, keys, strict=True)
        }
        slope = sum(float(mx.sum(flat[name] * direction[name]).item()) for name in names)
        ends = []
        for at in (step, -step):
            lora.load_parameters(model, {name: weights[name] + at * direction[name] for name in names})
            ends.append(float(loss(model).item()))
        measured = (ends[0] - ends[1]) / (2 * step)
        return abs(measured - slope) / max(abs(measured), abs(slope), 1e-2)

    middle = statistics.median(min(off(number, step) for step in STEPS) for number in range(1, DIRECTIONS + 1))
    if any(not bool(mx.array_equal(a, b).item()) for a, b in zip(frozen, kept, strict=True)):
        return "a step moves more than the adapter"
    return None if middle < 0.05 else f"its gradient is off by {middle:.0%} of finite differences"
