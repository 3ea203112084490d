"""A server that learns from what it serves, with no hand in between: python benchmarks/live_loop.py

`draftloop serve --learn idle` on the embedded pair is asked prompts of prose by OpenAI's client, and then nobody asks.
It trains, lets the gate decide, and puts the champion into use. Prompts that were held back are asked before and after,
and are kept out of the log. What a first request during a training waits for is measured too.
"""

from __future__ import annotations

import prepared  # noqa: F401

# isort: split
import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import results
import serving_world as world
from results import Figure

from draftloop import reference
from draftloop.cli.tables import print_table
from draftloop.evaluation.intervals import paired_ratio_difference_interval
from draftloop.prompts.files import read_prompts

TOKENS, DRAFTS = 64, 4
ASKED, MEASURED, FIRST = 300, 100, 20
IDLE_MINUTES, LONGEST_S = 0.05, 45 * 60


@dataclass(frozen=True)
class Asked:
    """Prompts by what they are for."""

    taught: list[str]
    measured: list[str]


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
    with tempfile.TemporaryDirectory(prefix="draftloop-live-") as folder:
        figures = run(prompts, Path(folder))
    print_table(
        ["figure", "measured", "unit", "reached"],
        [[one.figure, f"{one.value:.3f}", one.unit, str(one.reached)] for one in figures],
    )
    if not given.quick:
        conditions = {"asked": asked, "measured": measured, "tokens": TOKENS, "num_draft_tokens": DRAFTS}
        results.write("live_loop", conditions, figures)


def run(prompts: Asked, folder: Path) -> list[Figure]:
    """The whole of it."""
    port = world.free_port()
    learning = ("--learn", "idle", "--idle-minutes", str(IDLE_MINUTES))
    command = world.ours(Path(reference.TARGET), Path(reference.DRAFT), folder, port, *learning)
    with world.server(command, port) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600)
        idle = statistics.median(_first_token(url, prompts.measured[0]) for _ in range(FIRST))
        before = _measure(client, prompts.measured)
        for prompt in prompts.taught:
            client.completions.create(model="default", prompt=prompt, max_tokens=TOKENS, temperature=0.8)
        began = time.monotonic()
        _wait_for(url, "draftloop:learner_at_work 1.0", began)
        during = _first_token(url, prompts.measured[0])
        _wait_for(url, 'draftloop:champion_info{version="v', began)
        learned = time.monotonic() - began
        after = _measure(client, prompts.measured)
    first, second = ([list(map(float, column)) for column in zip(*one, strict=True)] for one in (before, after))
    groups = list(range(len(before)))
    gain = paired_ratio_difference_interval(first[0], first[1], second[0], second[1], groups, seed=0)
    assert gain.low is not None and gain.high is not None  # noqa: PT018 - there are many prompts
    return [
        Figure("acceptance length before", sum(first[0]) / sum(first[1]), "tokens/round"),
        Figure("acceptance length after", sum(second[0]) / sum(second[1]), "tokens/round"),
        Figure("gain", gain.estimate, "tokens/round", interval=(gain.low, gain.high)),
        Figure("low end of the gain's interval", gain.low, "tokens/round", at_least=0.0),
        Figure("first request during a training over an idle server's", during / idle, "x", at_most=1.5),
        Figure("first request during a training", during, "s", at_most=2.0),
        Figure("from the last request to the swap", learned / 60, "minutes"),
    ]


def _measure(client: openai.OpenAI, prompts: Sequence[str]) -> list[tuple[int, float]]:
    """Tokens and rounds of each prompt's answer, which is kept out of the log."""
    found = []
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
        found.append((timings["predicted_n"], timings["predicted_n"] / timings["acceptance_length"]))
    return found


def _first_token(url: str, prompt: str) -> float:
    """Seconds to the first token of a request that is not recorded."""
    with httpx.Client() as client:
        return world.ask(client, url, prompt, max_tokens=1, temperature=0, store=False).first


def _wait_for(url: str, line: str, began: float) -> None:
    while line not in httpx.get(f"{url}/metrics", timeout=60).text:
        if time.monotonic() - began > LONGEST_S:
            raise RuntimeError(f"after {LONGEST_S / 60:.0f} minutes there is no {line}")
        time.sleep(0.05)


if __name__ == "__main__":
    main()
