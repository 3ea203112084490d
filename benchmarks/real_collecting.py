"""Collecting on a real model against doing one after the other: python benchmarks/real_collecting.py smollm2

Records of many prompts, distributions and all, against generating with the target and then with the draft, as mlx-lm
does it; both in turns.
"""

from __future__ import annotations

import prepared  # noqa: F401

# isort: split
import argparse
import sys
from functools import partial
from pathlib import Path

import results
from real_prompts import varied_instructions
from results import Figure
from speed_collecting import LIVE_LOOP, OTHERS, OURS, collect, one_after_the_other
from speed_world import Timed, ratios, take_turns

from draftloop.cli.tables import print_table
from draftloop.config import Models, Speculative
from draftloop.decoding.generate import decoding_settings
from draftloop.models.pair import load_pair
from draftloop.prompts.prompt import Prompt

sys.path.append(str(Path(__file__).resolve().parents[1]))  # what makes the models is no part of the package
from scripts.real_models import SOURCES, real_model

TOKENS, REPEATS, COLLECTED, ONE_BY_ONE, LIVE = 48, 3, 64, 6, 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=sorted(SOURCES))
    parser.add_argument("--draft", default="self:4", help="as models.draft; default: self:4")
    given = parser.parse_args()
    pair = load_pair(Models(target=str(real_model(given.model)), draft=given.draft))
    settings = decoding_settings(Speculative(max_tokens=TOKENS, temperature=0.7, top_p=0.95))
    prompts = [Prompt(text) for text in varied_instructions("collect", COLLECTED)]
    found = take_turns(
        {
            OTHERS: partial(one_after_the_other, pair, prompts[:ONE_BY_ONE], settings),
            LIVE_LOOP: partial(collect, pair, prompts[:LIVE], settings, live=True),
            OURS: partial(collect, pair, prompts, settings, live=False),
        },
        REPEATS,
    )
    ratio = ratios(found, OURS, OTHERS).median
    figure = Figure("collecting, over target and draft one after the other", ratio, "x tokens/s", at_least=3.0)
    rows = []
    for way, speeds in found.items():
        timed = Timed.of(speeds)
        rows.append({"way": way, "speed": timed.median, "spread": timed.spread})
    print_table(list(rows[0]), [list(row.values()) for row in rows])
    print_table(["figure", "measured", "at least"], [[figure.figure, f"{figure.value:.2f}", figure.at_least]])
    conditions = {
        "target": given.model,
        "draft": given.draft,
        "temperature": settings.sampler.temperature,
        "max_tokens": TOKENS,
        "prompts": {OTHERS: ONE_BY_ONE, LIVE_LOOP: LIVE, OURS: COLLECTED},
    }
    results.write(f"real_collecting_{given.model}", conditions, [figure], rows=rows)


if __name__ == "__main__":
    main()
