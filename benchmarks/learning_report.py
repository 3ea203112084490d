"""What the learning benchmark's runs say: gains, figures, tables and the picture. Knows how no run was made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

import plots
import results
from results import Figure

AT, FEW = 200, 20
CEILING = "all weights, 20 x the texts"
WEAK, OWN = "prose", "code"
BASELINE, OURS, BY_DEFAULT = "mlx_lm.lora", "ours", "ours, as by default"
OVER_BASELINE, OVER_KL = 3.0, 1.25  # times the gain
Sums = list[tuple[float, int]]


@dataclass(frozen=True)
class Run:
    """One training and what it came to.

    Attributes:
        temperature, recipe, failures, seed, learning_rate: of the training.
        openings: prompts among the failures that begin differently.
        steps, seconds, peak_mb: what it took.
        curve: (seconds, acceptance on its validation texts) while it ran.
        last: acceptance on these texts at the end.
        base, trained: by domain, for each reported text the sum of the acceptance and its positions.
    """

    temperature: float
    recipe: str
    failures: int
    seed: int
    learning_rate: float
    openings: int
    steps: int
    seconds: float
    peak_mb: float
    curve: list[tuple[float, float]]
    last: float
    base: dict[str, Sums]
    trained: dict[str, Sums]

    def gain(self, domain: str) -> float:
        """Acceptance per position of the trained draft over the bare one."""
        return ratio(self.trained[domain]) - ratio(self.base[domain])

    def seconds_until(self, acceptance: float) -> float:
        """Of training until the validation texts had this acceptance; infinite where they never had."""
        return next((seconds for seconds, found in self.curve if found >= acceptance), float("inf"))


def find_figures(runs: Sequence[Run], at: int, temperature: float = 0.8) -> list[Figure]:
    """What the benchmark is asked for, at so many failures."""
    here = {recipe: chosen(runs, recipe, at, temperature) for recipe in {run.recipe for run in runs}}
    gains = {recipe: mean(run.gain(WEAK) for run in some) for recipe, some in here.items() if some}
    found = []
    for ours in (OURS, BY_DEFAULT):
        for other, least in ((BASELINE, OVER_BASELINE), ("kl", OVER_KL)):
            if ours in gains and other in gains:
                what = f"gain of {ours} over {'forward KL' if other == 'kl' else other}, same steps"
                found.append(Figure(what, gains[ours] / gains[other], "x", at_least=least))
    if CEILING in gains:
        found.append(Figure("share of the ceiling's gain", 100 * gains[OURS] / gains[CEILING], "%", at_least=70))
    pairs = zip(here[OURS], here[BASELINE], strict=True)
    seconds = mean(own.seconds_until(other.last) / other.seconds for own, other in pairs)
    found.append(Figure(f"seconds until {BASELINE} ends, of its own", seconds, "share", at_most=1 / 3))
    other_domain = mean(run.gain(OWN) for run in here[OURS])
    found.append(Figure("the other domain", other_domain, "acceptance per position", at_least=-0.01))
    few = chosen(runs, OURS, FEW, temperature)
    if few:
        low = min(interval([run.base[WEAK]], [run.trained[WEAK]])[1] for run in few)
        least_gain = f"{FEW} failures, lowest end of the gain's interval in any seed"
        found.append(Figure(least_gain, low, "acceptance per position", at_least=1e-9))
    return found


def chosen(runs: Iterable[Run], recipe: str, failures: int, temperature: float) -> list[Run]:
    """All seeds of one recipe, in their order."""
    found = [r for r in runs if (r.recipe, r.failures, r.temperature) == (recipe, failures, temperature)]
    return sorted(found, key=lambda run: run.seed)


def interval(before: Sequence[Sums], after: Sequence[Sums]) -> tuple[float, float, float]:
    """The difference in acceptance per position with its 95% interval over prompts, of all seeds together.

    Which failures a seed drew is not in it: the seeds' own gains stand beside it.
    """
    from draftloop.evaluation.intervals import paired_ratio_difference_interval

    prompts = [number for sums in before for number in range(len(sums))]
    (old, of), (new, of_new) = (zip(*(pair for sums in some for pair in sums), strict=True) for some in (before, after))
    found = paired_ratio_difference_interval(old, of, new, of_new, prompts, seed=0)
    assert found.low is not None
    assert found.high is not None
    return found.estimate, found.low, found.high


def differences(runs: Sequence[Run], at: int) -> list[dict[str, Any]]:
    """How much more ours gains than each other recipe at so many failures, with intervals."""
    found = []
    for temperature, recipe in dict.fromkeys((run.temperature, run.recipe) for run in runs if run.recipe != OURS):
        ours, others = (chosen(runs, name, at, temperature) for name in (OURS, recipe))
        ours = [run for run in ours if run.seed in {other.seed for other in others}]
        estimate, low, high = interval([r.trained[WEAK] for r in others], [r.trained[WEAK] for r in ours])
        about = {"temperature": temperature, "recipe": recipe}
        found.append({**about, "ours_more_by": estimate, "low": low, "high": high})
    return found


def rows(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """One row for each temperature, recipe and number of failures: means over seeds, the least seconds, the most MB."""
    keys = dict.fromkeys((run.temperature, run.recipe, run.failures) for run in runs)
    for temperature, recipe, failures in keys:
        some = chosen(runs, recipe, failures, temperature)
        yield {
            "temperature": temperature,
            "recipe": recipe,
            "failures": failures,
            "openings": round(mean(run.openings for run in some)),
            "learning_rate": median(run.learning_rate for run in some),  # by default each has its own
            "steps": round(mean(run.steps for run in some)),
            "gain": mean(run.gain(WEAK) for run in some),
            "gain_low": min(run.gain(WEAK) for run in some),
            "gain_high": max(run.gain(WEAK) for run in some),
            "other_domain": mean(run.gain(OWN) for run in some),
            "seconds": min(run.seconds for run in some),  # what else ran beside it only adds
            "peak_mb": max(run.peak_mb for run in some),
            "seeds": len(some),
        }


def show(runs: Sequence[Run], figures: Sequence[Figure]) -> None:
    """Tables to the terminal."""
    from draftloop.cli.tables import print_table

    found = list(rows(runs))
    print_table(list(found[0]), [list(row.values()) for row in found], title="learning")
    print_table(
        ["figure", "measured", "bound", "unit", "reached"],
        [[f.figure, f.value, f.at_least or f.at_most, f.unit, "yes" if f.reached else "NO"] for f in figures],
    )


def write(name: str, runs: Sequence[Run], figures: Sequence[Figure], conditions: dict[str, Any], at: int) -> None:
    """The results file, and the picture where there are several numbers of failures."""
    base = {f"{t:g}": {d: ratio(r.base[d]) for d in r.base} for t, r in {run.temperature: run for run in runs}.items()}
    found = list(rows(runs))
    everything = {"rule": "rejection; greedy at temperature 0", **conditions}
    results.write(name, everything, figures, base=base, rows=found, differences=differences(runs, at))
    if {row["failures"] for row in found} != {at}:
        picture(found, at)


def picture(found: Sequence[dict[str, Any]], at: int) -> None:
    """Gain by number of failures, at temperature 0.8."""
    figure, (axes,) = plots.panels()
    recipes = dict.fromkeys(row["recipe"] for row in found if row["failures"] != at)
    for colour, recipe in zip(plots.COLOURS, recipes, strict=False):
        some = sorted((r for r in found if r["recipe"] == recipe and r["temperature"] == 0.8), key=_failures)
        sizes = [row["failures"] for row in some]
        axes.plot(sizes, [row["gain"] for row in some], color=colour, marker="o", label=recipe)
        axes.fill_between(
            sizes, [row["gain_low"] for row in some], [row["gain_high"] for row in some], color=colour, alpha=0.15
        )
    ceiling = [row["gain"] for row in found if row["recipe"] == CEILING]
    if ceiling:
        axes.axhline(ceiling[0], color=plots.GREY, linestyle="--", label=CEILING)
    axes.set_xscale("log")
    axes.set_xticks([20, 50, 100, 200, 500, 1000], labels=["20", "50", "100", "200", "500", "1,000"])
    axes.minorticks_off()
    axes.set_xlabel("failures")
    axes.set_ylabel("gain, acceptance per position")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=5, columnspacing=1.2)
    plots.save(figure, "learning")


def _failures(row: dict[str, Any]) -> int:
    return int(row["failures"])


def ratio(sums: Sums) -> float:
    """Acceptance per position of some texts."""
    return sum(a for a, _ in sums) / sum(n for _, n in sums)
