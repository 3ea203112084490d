"""What exact draws cost beside the ones before them, in turns: python benchmarks/speed_draws.py

Until 2026-11-29 a token was drawn by one uniform against a running sum of the softmax, whose mass was taken as 1. That
sampler stands here, and takes the place of the exact one in every other turn: in whole rounds of the embedded pair, and
in the sampling alone of a vocabulary of 151,936 tokens, which is all of a round that has changed.
"""

from __future__ import annotations

import prepared  # noqa: F401

# isort: split
import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import mlx.core as mx
import results
from results import Figure

from draftloop import reference
from draftloop.cli.tables import print_table
from draftloop.config import Models, Rule
from draftloop.data.records import Sampler
from draftloop.decoding import acceptance_rules, round_sampler, sampling_filters
from draftloop.decoding.decoder import Decoding, Settings
from draftloop.decoding.round_sampler import StochasticSampler
from draftloop.models.pair import load_pair
from draftloop.prompts.files import read_prompts
from draftloop.prompts.prompt import encode_prompt

SAMPLER = Sampler(0.8, 1.0, 0.0, 0, 0)
LENGTHS, LARGE = (1, 4), 151_936
RULES: tuple[Rule, ...] = ("rejection", "block")
PASSES, ROUNDS, ROUNDS_ALONE = 40, 20, 5
AT_MOST, AT_MOST_LARGE = 1.05, 1.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few passes to try the script; writes no results")
    quick = parser.parse_args().quick
    passes = 3 if quick else PASSES
    rows = [
        {"what": what, "rule": rule, "K": count, "exact_over_before": in_turns(make(rule, count), passes)}
        for what, make in (("a round, embedded pair", _rounds), (f"sampling alone, V = {LARGE:,}", _sampling))
        for rule in RULES
        for count in LENGTHS
    ]
    print_table(list(rows[0]), [list(row.values()) for row in rows])
    ratios = [float(str(row["exact_over_before"])) for row in rows]
    figures = []
    for what, bound in zip(dict.fromkeys(row["what"] for row in rows), (AT_MOST, AT_MOST_LARGE), strict=True):
        worst = max(ratio for ratio, row in zip(ratios, rows, strict=True) if row["what"] == what)
        figures.append(Figure(f"{what}, exact draws over those before, worst", worst, "x", at_most=bound))
    if not quick:
        results.write("speed_draws", {"sampler": "temperature 0.8", "passes": passes}, figures, rows=rows)


def in_turns(work: Callable[[], float], passes: int) -> float:
    """Seconds with exact draws over those with the ones before, median over passes that take turns."""
    ratios = []
    for number in range(passes + 1):
        exact = work()
        with draws_before():
            before = work()
        if number:
            ratios.append(exact / before)
    return round(statistics.median(ratios), 3)


def _rounds(rule: Rule, count: int) -> Callable[[], float]:
    """Rounds of the embedded pair after its first one; with either kind of draws there are as many."""
    pair = replace(load_pair(Models()), stop_tokens=frozenset())
    settings = Settings(SAMPLER, rule, count, (ROUNDS + 1) * (count + 1))
    text = read_prompts(reference.prompts_file(reference.OWN_DOMAIN, "benchmark"))[0]
    prompt = encode_prompt(text, pair.tokenizer, chat_template=True, max_length=1 << 20)
    assert isinstance(prompt, list)

    def work() -> float:
        rounds = iter(Decoding(pair, prompt, settings))
        next(rounds)  # reads the prompt
        began = time.perf_counter()
        for _ in range(ROUNDS):
            next(rounds)
        return time.perf_counter() - began

    return work


def _sampling(rule: Rule, count: int) -> Callable[[], float]:
    """The proposals and the verification of rounds whose logits are there."""
    logits = 3.0 * mx.random.normal((2 * count + 1, LARGE), key=mx.random.key(1))
    mx.eval(logits)

    def work() -> float:
        sampler = StochasticSampler(SAMPLER, rule, LARGE)
        began = time.perf_counter()
        for _ in range(ROUNDS_ALONE):
            sampler.begin(count)
            for i in range(count):
                mx.async_eval(sampler.propose(logits[i : i + 1]))
            sampler.verify(logits[count:])
        return time.perf_counter() - began

    return work


@contextmanager
def draws_before() -> Iterator[None]:
    """Within the block, tokens are drawn as before 2026-11-29."""

    def draw(weights: mx.array, draws: mx.array) -> mx.array:
        sums = mx.cumsum(weights, axis=-1)
        below = sums <= mx.exp(-draws[..., :1]) * sums[..., -1:]  # exp of minus an exponential is uniform
        return mx.minimum(below.sum(axis=-1), weights.shape[-1] - 1).astype(mx.uint32)

    places = (
        (round_sampler, "draw_tokens", draw),
        (acceptance_rules, "draw_tokens", draw),
        (round_sampler, "exponentials_per_draw", lambda _vocabulary: 1),
        (sampling_filters, "row_sums", lambda probs: mx.ones(probs.shape[:-1])),
    )
    kept = [(module, name, getattr(module, name)) for module, name, _ in places]
    for module, name, new in places:
        setattr(module, name, new)
    try:
        yield
    finally:
        for module, name, old in kept:
            setattr(module, name, old)


if __name__ == "__main__":
    main()
