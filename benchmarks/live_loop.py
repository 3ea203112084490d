"""A server that learns from what it serves, with no hand in between: python benchmarks/live_loop.py

`draftloop serve --learn idle` on the embedded pair is asked prompts of prose by OpenAI's client, and then nobody asks.
It trains, lets the gate decide, and puts the champion into use. Prompts that were held back are asked before and after,
and are kept out of the log. How long a first request waits that stops the training is measured too.
"""

from __future__ import annotations

import prepared  # noqa: F401

# isort: split
import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import openai
import results
from live_world import TRAINING, LiveServer, live_server
from results import Figure

from draftloop import reference
from draftloop.cli.tables import print_table
from draftloop.evaluation.intervals import paired_ratio_difference_interval
from draftloop.prompts.files import read_prompts

TOKENS, DRAFTS = 64, 4
ASKED, MEASURED = 300, 100
IDLE_SAMPLES, STOPS = 9, 9  # first tokens of an idle server, and of one whose child they stop
LONGEST_PAUSE = 2.0  # seconds before such a request
IDLE_MINUTES = 0.05


@dataclass(frozen=True)
class Asked:
    """Prompts by what they are for."""

    taught: list[str]
    measured: list[str]


@dataclass(frozen=True)
class Measured:
    """Tokens and rounds of each answer."""

    tokens: list[float]
    rounds: list[float]

    @property
    def acceptance_length(self) -> float:
        """Of all answers together."""
        return sum(self.tokens) / sum(self.rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer prompts, to try the script; writes no results")
    given = parser.parse_args()
    asked, measured = (120, 20) if given.quick else (ASKED, MEASURED)
    domain = reference.WEAK_DOMAIN
    prompts = Asked(
        [prompt.text for prompt in read_prompts(reference.prompts_file(domain, "collect"))[:asked]],
        [prompt.text for prompt in read_prompts(reference.prompts_file(domain, "benchmark"))[:measured]],
    )
    settings = {"training.epochs": 4, "training.answers": 0, "training.proposals": 0} if given.quick else {}
    with tempfile.TemporaryDirectory(prefix="draftloop-live-") as folder:
        figures = run(prompts, Path(folder), settings)
    print_table(
        ["figure", "measured", "unit", "reached"],
        [[one.figure, f"{one.value:.3f}", one.unit, str(one.reached)] for one in figures],
    )
    if not given.quick:
        conditions = {"asked": asked, "measured": measured, "tokens": TOKENS, "num_draft_tokens": DRAFTS}
        results.write("live_loop", conditions, figures)


def run(prompts: Asked, folder: Path, settings: Mapping[str, object]) -> list[Figure]:
    """The whole of it."""
    with live_server(folder, IDLE_MINUTES, settings) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=600)
        idle = statistics.median(_first_token(server, prompts.measured[0], pause) for pause in _pauses(IDLE_SAMPLES))
        if server.has_child:
            raise RuntimeError("there is a child already: the server was not idle")
        before = _measure(client, prompts.measured)
        for prompt in prompts.taught:
            client.completions.create(model="default", prompt=prompt, max_tokens=TOKENS, temperature=0.8)
        began = time.monotonic()
        stops = _first_tokens_of_stops(server, prompts.measured[0])
        server.until(lambda: server.swaps > 0, "a champion in use")
        learned = time.monotonic() - began
        after = _measure(client, prompts.measured)
    columns = (before.tokens, before.rounds, after.tokens, after.rounds)
    gain = paired_ratio_difference_interval(*columns, list(range(len(before.tokens))), seed=0)
    assert gain.low is not None and gain.high is not None  # noqa: PT018 - there are many prompts
    ratios = [one / idle for one in stops]
    return [
        Figure("acceptance length before", before.acceptance_length, "tokens a round"),
        Figure("acceptance length after", after.acceptance_length, "tokens a round"),
        Figure("gain", gain.estimate, "tokens a round", interval=(gain.low, gain.high)),
        Figure("low end of the gain's interval", gain.low, "tokens a round", at_least=1e-9),
        Figure("requests that stopped a training", len(stops), "requests", at_least=7),
        Figure("their first token over an idle server's, median", statistics.median(ratios), "x", at_most=1.5),
        Figure("their first token over an idle server's, longest", max(ratios), "x"),
        Figure("their first token, longest", max(stops), "s", at_most=2.0),
        Figure("first token of an idle server", idle, "s"),
        Figure("from the last request to the swap", learned / 60, "minutes"),
    ]


def _measure(client: openai.OpenAI, prompts: Sequence[str]) -> Measured:
    """The answers to prompts, which are kept out of the log."""
    measured = Measured([], [])
    for number, prompt in enumerate(prompts):
        answer = client.completions.create(
            model="default",
            prompt=prompt,
            max_tokens=TOKENS,
            temperature=0.8,
            seed=number,
            extra_body={"num_draft_tokens": DRAFTS, "store": False},
        )
        timings = (answer.model_extra or {})["timings"]
        measured.tokens.append(timings["predicted_n"])
        measured.rounds.append(timings["predicted_n"] / timings["acceptance_length"])
    return measured


def _first_tokens_of_stops(server: LiveServer, prompt: str) -> list[float]:
    """Seconds to the first token of requests that each find a training at work and stop it.

    There are fewer of them where the champion changes before.
    """
    seconds = []
    for pause in _pauses(STOPS):
        server.until(lambda: server.swaps > 0 or (TRAINING in server.said and server.is_training), "a training")
        waited = _first_token(server, prompt, pause)
        if server.metric("learner_stopped") == 1:
            seconds.append(waited)
    return seconds


def _pauses(count: int) -> list[float]:
    """Seconds, the same ones whatever they are for."""
    choose = random.Random(0)
    return [LONGEST_PAUSE * choose.random() for _ in range(count)]


def _first_token(server: LiveServer, prompt: str, pause: float) -> float:
    """Seconds to the first token of a request that comes after a pause and is not recorded."""
    time.sleep(pause)
    return server.ask([prompt], max_tokens=1, temperature=0, store=False)[0].first


if __name__ == "__main__":
    main()
