"""The figures of the gate's benchmark, its tables on the terminal, and its picture. Reads rows, computes none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import plots
from gate_looks import LOSS, SOON
from gate_rates import SETTINGS
from gate_tables import gate_sections
from matplotlib.axes import Axes
from results import Figure

from draftloop.cli.tables import print_table

Row = dict[str, Any]
Tables = dict[str, list[Row]]

CLEAR, HARM = 0.3, -0.1  # tokens a round: a gain on the first source, a loss on the second
PROMOTES = {30: 80.0, 100: 95.0, 400: 95.0}  # by prompts a source: least share of clear gains, %
HARMS = {30: 3.0, 100: 1.0}  # most of those that harm another source
HIDDEN = 1.0  # most of those that harm small sources
CAUGHT, WRONG = 95.0, 5.0  # least share of losses rolled back, most of drafts that are no worse


def find_figures(tables: Tables) -> Iterator[Figure]:
    """What is measured against a bound."""
    clear = f"promoted at the first attempt, {CLEAR:+g} on the first source"
    for prompts, least in PROMOTES.items():
        row = power_row(tables["power"], prompts, 0.0)
        name = f"{clear}, the second unchanged, {prompts} prompts a source"
        yield Figure(name, share(row["gate_1"]), unit(row["gate_1"]), at_least=least)
    for prompts, most in HARMS.items():
        row = power_row(tables["power"], prompts, HARM)
        name = f"{clear}, the second loses {-HARM:g}, {prompts} prompts a source"
        yield Figure(name, share(row["gate_1"]), unit(row["gate_1"]), at_most=most)
    for row in tables["names"]:
        name = f"{clear} of {row['prompts']} prompts, three sources of 11 prompts lose {CLEAR:g}"
        yield Figure(name, share(row["gate_1"]), unit(row["gate_1"]), at_most=HIDDEN)
    for prompts in dict.fromkeys(row["prompts"] for row in tables["nulls"]):
        rows = (row for row in tables["nulls"] if row["prompts"] == prompts)
        worst = max(rows, key=lambda row: float(row["gate"]["share"]))
        name = f"epochs without a better candidate that promote one, {prompts} prompts, worst null ({worst['kind']})"
        said = f"%, lower end of the 99% interval; {share(worst['gate']):.2f}% of {worst['epochs']:,} epochs"
        yield Figure(name, 100 * worst["gate_99"]["low"], said, at_most=100 * SETTINGS.alpha)
    equal = [row for row in tables["false_rollbacks"] if row["kind"] == "equal"]
    worst = max(equal, key=lambda row: float(row["all"]["share"]))
    name = f"promotions of an equal draft rolled back over all looks and checks, at worst ({worst['sources']} sources)"
    yield Figure(name, share(worst["all"]), unit(worst["all"]), at_most=WRONG)
    worst = min(tables["rollbacks"], key=lambda row: float(row["within_of_unit"]["share"]))
    name = f"rolled back within {SOON} new held-out prompts of a source that loses {LOSS:.0%}"
    yield Figure(name, share(worst["within_of_unit"]), unit(worst["within_of_unit"]), at_least=CAUGHT)


def power_row(rows: list[Row], prompts: int, others: float) -> Row:
    """The clear gain on the first of two sources."""
    wanted = {"sources": 2, "prompts": prompts, "effect": CLEAR, "others": others}
    return next(row for row in rows if all(row[name] == value for name, value in wanted.items()))


def share(rate: dict[str, float]) -> float:
    """In percent."""
    return 100 * rate["share"]


def unit(rate: dict[str, float]) -> str:
    """Percent, and the interval that belongs to the value."""
    return f"%, 95% interval {100 * rate['low']:.1f} to {100 * rate['high']:.1f}"


def show(figures: list[Figure], tables: Tables) -> None:
    """Everything on the terminal."""
    print_table(
        ["figure", "measured", "bound", "unit", "reached"],
        [[f.figure, f"{f.value:.2f}", bound(f), f.unit, "yes" if f.reached else "NO"] for f in figures],
    )
    for title, head, rows in gate_sections(tables):
        print_table(head, rows, title=title)


def bound(figure: Figure) -> str:
    """What the value is held against."""
    return f"<= {figure.at_most:g}" if figure.at_most is not None else f">= {figure.at_least:g}"


def picture(powers: list[Row]) -> Path:
    """Power by effect: the gate as it is, and its test alone."""
    titles = {1: "one source", 2: "two sources, the second unchanged"}
    figure, axes = plots.panels(len(titles), width=9.0)
    colours = dict(zip(dict.fromkeys(sorted(row["prompts"] for row in powers)), plots.COLOURS, strict=False))
    for axis, (sources, title) in zip(axes, titles.items(), strict=True):
        for prompts, colour in colours.items():
            wanted = (sources, prompts, 0.0)
            rows = [row for row in powers if (row["sources"], row["prompts"], row["others"]) == wanted]
            draw_power(axis, rows, colour)
        axis.set(title=title, xlabel="true gain on the first, tokens a round", ylim=(-0.03, 1.03))
    for prompts, colour in colours.items():
        axes[0].plot([], [], color=colour, marker="o", ms=4, label=f"{prompts} prompts a source")
    axes[0].plot([], [], color=plots.GREY, ls=":", label="test alone")
    axes[0].set_ylabel("promoted at the first attempt")
    axes[0].legend(loc="lower right")
    return plots.save(figure, "gate-power")


def draw_power(axis: Axes, rows: list[Row], colour: str) -> None:
    """One number of prompts: the gate with its intervals, and the test alone, dotted."""
    effects, shares = [row["effect"] for row in rows], [row["gate_1"]["share"] for row in rows]
    ends = [[abs(row["gate_1"][end] - row["gate_1"]["share"]) for row in rows] for end in ("low", "high")]
    axis.errorbar(effects, shares, ends, color=colour, marker="o", ms=4, capsize=2)
    axis.plot(effects, [row["test_1"]["share"] for row in rows], color=colour, ls=":")
