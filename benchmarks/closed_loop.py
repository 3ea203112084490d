"""The closed loop on the embedded pair, at the size that docs/measurements.md shows: python benchmarks/closed_loop.py

Collects 200 prompts of the weak domain and 50 of the other, trains with the defaults, measures both domains on the
benchmark prompts, then decodes for real to hold the estimate against it. All of it twice, to see the same numbers.
"""

from __future__ import annotations

import prepared  # noqa: F401

# isort: split
import argparse
import math
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import results
from results import Figure

from draftloop import reference
from draftloop.cli.progress import Steps
from draftloop.cli.tables import print_table
from draftloop.decoding.generate import decoding_settings
from draftloop.demo import LoopResult, LoopSettings, loop_config, run_loop
from draftloop.evaluation.benchmark import accepted
from draftloop.evaluation.estimator import total
from draftloop.evaluation.live_decoding import decode_all, usable_prompts
from draftloop.evaluation.scoring import score
from draftloop.models.pair import Pair
from draftloop.prompts.files import read_prompts

FULL = LoopSettings(
    weak_prompts=200, own_prompts=50, benchmark_prompts=150, max_tokens=96, num_draft_tokens=(4, 1, 2, 8)
)
QUICK = LoopSettings(
    weak_prompts=40, own_prompts=12, benchmark_prompts=16, max_tokens=32, num_draft_tokens=(4, 1, 2, 8)
)
LIVE_TOKENS = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a small run to try the script; writes no results")
    options = parser.parse_args()
    settings = replace(QUICK if options.quick else FULL, seed=options.seed)
    live_tokens = 1_000 if options.quick else LIVE_TOKENS
    with Steps() as steps, tempfile.TemporaryDirectory(prefix="draftloop-closed-loop-") as folder:
        pair, loop = once(settings, Path(folder) / "first", steps)
        adapter = Path(folder) / "first" / "adapters" / loop.trained.version
        live = [
            live_against_estimate(pair, adapter, settings, k, live_tokens, steps)
            for k in sorted(settings.num_draft_tokens)
        ]
        _, again = once(settings, Path(folder) / "second", steps)
    figures = list(find_figures(loop, again, live))
    print_table(
        ["figure", "measured", "bound", "unit", "reached"],
        [[f.figure, f.value, bound(f), f.unit, "yes" if f.reached else "NO"] for f in figures],
    )
    print_table(list(live[0]), [list(row.values()) for row in live], title="estimated against live")
    if not options.quick:
        conditions = {
            "pair": "embedded",
            "adapter": f"{loop.trained.version}, trained with the defaults",
            "rule": "rejection",
            "temperature": 0.8,
            "num_draft_tokens": 4,
            "loop": asdict(settings),
            "training": {k: v for k, v in asdict(loop.trained).items() if k not in ("path", "run_path", "seconds")},
            "measured": {domain: report.conditions for domain, report in loop.reports.items()},
        }
        rows = {domain: report.to_json() for domain, report in loop.reports.items()}
        results.write("closed_loop", conditions, figures, domains=rows, live=live)


def once(settings: LoopSettings, folder: Path, steps: Steps) -> tuple[Pair, LoopResult]:
    """One turn of the loop in a directory of its own; the pair keeps the adapter."""
    return run_loop(settings, loop_config(settings), folder, steps.at)


def live_against_estimate(
    pair: Pair, adapter: Path, settings: LoopSettings, k: int, least_tokens: int, steps: Steps
) -> dict[str, Any]:
    """Decode prompts of both domains for real until there are enough tokens, and estimate on those very texts.

    Given the texts, each one's rounds scatter about their expectation independently, so the standard error of their sum
    is the root of the summed squares of what each is off by.
    """
    config = loop_config(settings)
    decoding = replace(decoding_settings(config.speculative), num_draft_tokens=k)
    files = [read_prompts(reference.prompts_file(domain, "benchmark")) for domain in reference.DOMAINS]
    prompts = [prompt for both in zip(*files, strict=True) for prompt in both]
    usable, _ = usable_prompts(pair, prompts, decoding, chat_template=True, max_length=1 << 20)
    texts, outputs, tokens = [], [], 0
    for _, ids in usable:
        if tokens >= least_tokens:
            break
        decoded = decode_all(pair, [ids], decoding)
        texts += decoded.generations
        outputs += decoded.outputs
        tokens = sum(output.tokens for output in outputs)
        steps.at(f"decoding for real, K = {k}", min(tokens, least_tokens), least_tokens)
    scores = score(pair, texts, decoding.rule, {"adapter": adapter})["adapter"]
    expected = [accepted(found, decoding.rule, k) for found in scores]
    off = [real.rounds - guess.rounds for real, guess in zip(outputs, expected, strict=True)]
    real, guess = total(outputs), total(expected)
    return {
        "num_draft_tokens": k,
        "tokens": real.tokens,
        "live_length": real.acceptance_length,
        "estimated_length": guess.acceptance_length,
        "off_percent": 100 * abs(guess.acceptance_length / real.acceptance_length - 1),
        "standard_errors": abs(sum(off)) / math.sqrt(sum(value * value for value in off)),
    }


def find_figures(loop: LoopResult, again: LoopResult, live: list[dict[str, Any]]) -> list[Figure]:
    """The figures of the closed loop, in the order of the page."""
    weak, own = (loop.change(domain) for domain in (reference.WEAK_DOMAIN, reference.OWN_DOMAIN))
    by_rule = [
        loop.row(domain, True, "rejection").acceptance_length / loop.row(domain, True, "match").acceptance_length
        for domain in reference.DOMAINS
    ]
    position = "acceptance per position"
    return [
        Figure("weak domain, gain", weak.delta_acceptance_per_position, position, at_least=0.14),
        Figure("weak domain, lower end of the gain's interval", weak.position_ci_low or 0.0, position, at_least=1e-9),
        Figure("other domain, change", own.delta_acceptance_per_position, position, at_least=-0.005),
        *(
            Figure(f"estimate against live, K = {row['num_draft_tokens']}", row["off_percent"], "%", at_most=2.0)
            for row in live
        ),
        *(
            Figure(
                f"estimate against live, K = {row['num_draft_tokens']}",
                row["standard_errors"],
                "standard errors",
                at_most=3.0,
            )
            for row in live
        ),
        Figure("rejection over match, lower of both domains", min(by_rule), "x tokens a round", at_least=1.3),
        Figure("numbers that differ in a second run", differing(loop, again), "numbers", at_most=0),
    ]


def differing(first: LoopResult, second: LoopResult) -> int:
    """How many of all measured numbers are not the same to the last bit."""
    return sum(a != b for a, b in zip(_numbers(first), _numbers(second), strict=True))


def _numbers(loop: LoopResult) -> list[Any]:
    rows = [asdict(row) for report in loop.reports.values() for row in report.results]
    rows += [asdict(change) for report in loop.reports.values() for change in report.comparison]
    return [value for row in rows for value in row.values()]


def bound(figure: Figure) -> str:
    """The bound as a person writes it."""
    return f">= {figure.at_least:g}" if figure.at_least is not None else f"<= {figure.at_most:g}"


if __name__ == "__main__":
    main()
