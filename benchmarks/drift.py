"""How often drift cries wolf, and how soon it sees a wolf: python benchmarks/drift.py [--quick]

Collects from the collecting prompts of both domains with the bare draft of the embedded pair. Watches are then made of
what was collected, drawn with replacement, and of made-up acceptances; a reference and its stream are new in every one.
"""

from __future__ import annotations

import prepared  # noqa: F401

# isort: split
import argparse
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import results
from gate_rates import rate
from gate_tables import percent
from results import Figure

from draftloop import reference
from draftloop.cli.progress import Steps
from draftloop.cli.tables import print_table
from draftloop.config import Drift
from draftloop.data.log import FailureLog
from draftloop.decoding.generate import decoding_settings
from draftloop.demo import LoopSettings, collect_domain, loop_config
from draftloop.evaluation import drift
from draftloop.evaluation.estimator import FloatArray
from draftloop.models.pair import load_pair

Draw = Callable[[np.random.Generator, int], FloatArray]
Row = dict[str, Any]

RATES = (0.01, 0.05)
REFERENCES = (30, drift.FALL_REFERENCE)
FALLS = (0.05, 0.1, 0.2)
LONG = 5  # horizons
PLAIN_DRAWS = 1000


@dataclass(frozen=True)
class Size:
    """Prompts collected of each domain, watches a row of the tables, tokens a generation."""

    prompts: int
    unchanged: int
    long: int
    changed: int
    max_tokens: int


FULL = Size(prompts=300, unchanged=2000, long=1000, changed=400, max_tokens=48)
QUICK = Size(prompts=20, unchanged=50, long=20, changed=20, max_tokens=24)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a small run to try the script; writes no results")
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    with Steps() as steps:
        collected = collect(size, options.seed, steps)
        real = {domain: drawn_from(values) for domain, values in collected.items()}
        judged, beyond = real | MADE_UP, HARDER
        false_alarms = [
            row | {"judged": kind in judged}
            for kind, draw in (judged | beyond).items()
            for row in unchanged(kind, draw, size.unchanged, options.seed, steps)
        ]
        kinds = {"code": real["code"], "normal": MADE_UP["normal"]}
        long = [beyond_the_horizon(kind, draw, size.long, options.seed, steps) for kind, draw in kinds.items()]
        delays = list(delay_rows(real, size.changed, options.seed, steps))
    figures = list(find_figures(false_alarms))
    show(figures, false_alarms, long, delays)
    if not options.quick:
        conditions = find_conditions(collected, size, options.seed)
        results.write("drift", conditions, figures, false_alarms=false_alarms, long=long, delays=delays)


def collect(size: Size, seed: int, steps: Steps) -> dict[str, FloatArray]:
    """Acceptance per position of every generation of each domain."""
    config = loop_config(LoopSettings(size.prompts, size.prompts, 0, size.max_tokens, seed=seed))
    pair, decoding = load_pair(config.models), decoding_settings(config.speculative)
    with tempfile.TemporaryDirectory(prefix="draftloop-drift-") as folder:
        log = FailureLog(Path(folder) / "failures.jsonl")
        for domain in reference.DOMAINS:
            collect_domain(pair, log, domain, size.prompts, decoding, config, steps.at)
        found = [drift.generation_of(record) for record in log.records()]
    return {domain: np.array([g.acceptance for g in found if g.key.source == domain]) for domain in reference.DOMAINS}


def drawn_from(values: FloatArray) -> Draw:
    """With replacement."""
    return lambda random, count: random.choice(values, count)


def two_modes(share: float) -> Draw:
    """Prompts of two kinds, at 0.9 and at 0.4; `share` is that of the easy ones."""
    return lambda random, count: (
        np.where(random.random(count) < share, 0.9, 0.4) + random.normal(0.0, 0.03, count).clip(-0.1, 0.1)
    )


MADE_UP: dict[str, Draw] = {
    "normal": lambda random, count: random.normal(0.6, 0.15, count).clip(0.0, 1.0),
    "skewed to the left": lambda random, count: random.beta(8.0, 2.0, count),
    "two modes, half each": two_modes(0.5),
    "two modes, 97 to 3": two_modes(0.97),
}
HARDER: dict[str, Draw] = {  # where the method is at its nominal rate, and where it is beyond it
    "skewed to the right": lambda random, count: random.beta(2.0, 6.0, count),
    "0 or 1 and nothing between, 10 to 90": lambda random, count: (random.random(count) < 0.9).astype(np.float64),
}


def unchanged(kind: str, draw: Draw, watches: int, seed: int, steps: Steps) -> Iterator[Row]:
    """Share of watches of an unchanged source that raise an alarm within the horizon, one row a rate."""
    random = np.random.default_rng(seed)
    settings = [Drift(false_alarm_rate=chosen) for chosen in RATES]
    alarms, plain_alarms = np.zeros(len(RATES), int), np.zeros(len(RATES), int)
    for number in range(watches):
        usual, stream = draw(random, settings[0].reference), draw(random, settings[0].horizon)
        found = [watched(usual, stream, chosen, number) for chosen in settings]
        alarms += [watch.alarm for watch in found]
        plain_alarms += found[0].statistic > plain_thresholds(usual, settings[0], random)
        steps.at(f"unchanged, {kind}", number + 1, watches)
    for index, chosen in enumerate(RATES):
        shares = {"ours": alarms[index], "plain_bootstrap": plain_alarms[index]}
        yield {"kind": kind, "rate": chosen, "watches": watches} | {
            name: asdict(rate(int(count), watches)) for name, count in shares.items()
        }


def watched(usual: FloatArray, stream: FloatArray, settings: Drift, seed: int) -> drift.StreamCheck:
    """The package's own watch."""
    return drift.check_stream(usual, stream, source="", kind="drift", settings=settings, seed=seed)


def plain_thresholds(usual: FloatArray, settings: Drift, random: np.random.Generator) -> FloatArray:
    """(rates,) what a bootstrap of reference and stream says, to see what the package's own way is for."""
    means = random.choice(usual, (PLAIN_DRAWS, len(usual))).mean(axis=1, keepdims=True)
    streams = random.choice(usual, (PLAIN_DRAWS, settings.horizon))
    highest = drift.page_hinkley(streams, means, settings.tolerance).max(axis=1)
    found: FloatArray = np.quantile(highest, [1.0 - chosen for chosen in RATES])
    return found


def beyond_the_horizon(kind: str, draw: Draw, watches: int, seed: int, steps: Steps) -> Row:
    """Share of watches over several horizons with an alarm, and what it were if the sum never began anew."""
    random, settings = np.random.default_rng(seed), Drift()
    alarms = never_anew = 0
    for number in range(watches):
        usual, stream = draw(random, settings.reference), draw(random, LONG * settings.horizon)
        found = watched(usual, stream, settings, number)
        alarms += found.alarm
        highest = drift.page_hinkley(stream, found.reference, settings.tolerance).max()
        never_anew += bool(highest > found.threshold)
        steps.at(f"{LONG} horizons, {kind}", number + 1, watches)
    shares = {"ours": asdict(rate(alarms, watches)), "never_anew": asdict(rate(never_anew, watches))}
    return {"kind": kind, "rate": settings.false_alarm_rate, "horizons": LONG, "watches": watches} | shares


def delay_rows(real: dict[str, Draw], watches: int, seed: int, steps: Steps) -> Iterator[Row]:
    """Every change, for both rates and both sizes of the reference."""
    changes = {"code, then prose": (real["code"], real["prose"])} | {
        f"{domain}, {-fall:+g}": (draw, fallen(draw, fall)) for domain, draw in real.items() for fall in FALLS
    }
    for (change, (before, after)), size, chosen in product(changes.items(), REFERENCES, RATES):
        settings = Drift(false_alarm_rate=chosen, reference=size)
        random = np.random.default_rng(seed)
        ours, plain = [], []
        for number in range(watches):
            usual, stream = before(random, size), after(random, settings.horizon)
            found = watched(usual, stream, settings, number)
            statistic = drift.page_hinkley(stream, found.reference, settings.tolerance)
            ours.append(until(statistic, found.threshold))
            plain.append(until(statistic, plain_thresholds(usual, settings, random)[RATES.index(chosen)]))
            steps.at(f"{change}, rate {chosen:g}, reference {size}", number + 1, watches)
        shares = {"ours": delay(ours), "plain_bootstrap": delay(plain)}
        yield {"change": change, "rate": chosen, "reference": size, "watches": watches} | shares


def fallen(draw: Draw, fall: float) -> Draw:
    """The same stream, every generation lower by `fall`, and 0 at the lowest."""
    return lambda random, count: np.maximum(draw(random, count) - fall, 0.0)


def until(statistic: FloatArray, threshold: float) -> float:
    """Generations until the alarm, its own included; infinite without one."""
    above = np.flatnonzero(statistic > threshold)
    return int(above[0]) + 1 if len(above) else np.inf


def delay(alarms: list[float]) -> Row:
    """Generations until the alarm: median, 90% quantile (None where that many raise none), and who raised one."""
    quantiles = np.quantile(alarms, [0.5, 0.9], method="higher")
    median, ninety = (int(value) if np.isfinite(value) else None for value in quantiles)
    return {"median": median, "ninety": ninety, "detected": float(np.isfinite(alarms).mean())}


def find_figures(false_alarms: list[Row]) -> Iterator[Figure]:
    """The realised rate of every judged kind against the one that was chosen."""
    for row in false_alarms:
        if row["judged"]:
            found = row["ours"]
            interval = f"{100 * found['low']:.2f} to {100 * found['high']:.2f}"
            name = f"false alarms within the horizon at {100 * row['rate']:g}%, {row['kind']}"
            yield Figure(name, 100 * found["share"], f"%, 95% interval {interval}", at_most=100 * row["rate"])


def find_conditions(collected: dict[str, FloatArray], size: Size, seed: int) -> Row:
    """What the numbers depend on."""
    settings = Drift()
    return {
        "pair": "embedded",
        "adapter": None,
        "rule": "rejection",
        "temperature": 0.8,
        "size": asdict(size),
        "seed": seed,
        "reference": settings.reference,
        "horizon": settings.horizon,
        "tolerance": settings.tolerance,
        "draws": drift.DRAWS,
        "collected": {
            domain: {"generations": len(values), "mean": float(values.mean()), "deviation": float(values.std(ddof=1))}
            for domain, values in collected.items()
        },
    }


def show(figures: list[Figure], false_alarms: list[Row], long: list[Row], delays: list[Row]) -> None:
    print_table(
        ["figure", "measured", "at most", "unit", "reached"],
        [[f.figure, f.value, f.at_most, f.unit, "yes" if f.reached else "NO"] for f in figures],
    )
    print_table(
        ["unchanged", "asked for", "false alarms", "of a plain bootstrap"],
        [[row["kind"], row["rate"], percent(row["ours"]), percent(row["plain_bootstrap"])] for row in false_alarms],
    )
    print_table(
        ["unchanged", "horizons", "false alarms", "never begun anew"],
        [[row["kind"], row["horizons"], percent(row["ours"]), percent(row["never_anew"])] for row in long],
    )
    print_table(
        ["change", "rate", "reference", "median", "90%", "detected", "median of a plain bootstrap"],
        [
            [row["change"], row["rate"], row["reference"], *row["ours"].values(), row["plain_bootstrap"]["median"]]
            for row in delays
        ],
    )


if __name__ == "__main__":
    main()
