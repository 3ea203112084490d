"""The tables of the gate's benchmark, each with a title and a head: for the documents and for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Section = tuple[str, list[str], list[list[Any]]]
"""A title, the head of a table, and its rows."""


def gate_sections(found: dict[str, Any]) -> Iterator[Section]:
    """The tables of the gate's benchmark, for a document and for the terminal."""
    yield (
        "Held-out epochs in which no candidate is better on average",
        ["no better on average", "prompts", "epochs", "test alone passes", "gate promotes"],
        [
            [kind, row["prompts"], f"{row['epochs']:,}", percent(row["test"]), percent(row["gate"])]
            for row in [*found["nulls"], *found["beyond"]]
            for kind in [row["kind"] if row in found["nulls"] else f"*{row['kind']}*"]
        ],
    )
    effects = list(dict.fromkeys(row["effect"] for row in found["power"]))
    curves = [row for row in found["power"] if row["others"] == 0.0]
    for name, what in {"gate_1": "attempt 1", "gate_5": "attempt 5"}.items():
        cells = {(row["sources"], row["prompts"], row["effect"]): percent(row[name]) for row in curves}
        keys = dict.fromkeys((sources, prompts) for sources, prompts, _ in cells)
        rows = [[*key, *(cells.get((*key, effect), "") for effect in effects)] for key in keys]
        head = ["sources", "prompts a source", *(f"{effect:+g}" for effect in effects)]
        yield f"Promoted at {what}, by the gain on the first source, the others unchanged", head, rows
    yield _by_change_of_others(found["power"], max(effects))
    yield (
        f"The first source gains {max(effects):+g}, three sources of 11 prompts each lose as much",
        ["prompts of the first source", "candidates", "test alone passes", "gate promotes"],
        [[row["prompts"], row["candidates"], percent(row["test_1"]), percent(row["gate_1"])] for row in found["names"]],
    )
    yield (
        "A source that loses exactly the 4% that none may lose",
        ["it loses", "prompts", "candidates", "said to lose less", "and let through"],
        [
            [row["kind"], row["prompts"], f"{row['candidates']:,}", percent(row["not_worse"]), percent(row["unit_ok"])]
            for row in found["let_through"]
        ],
    )
    yield (
        "Promotions of a draft that is no worse, rolled back over 400 new prompts a source, an alarm always on",
        ["draft", "sources", "promotions", "rolled back", "by looks", "by checks"],
        [
            [
                row["kind"],
                row["sources"],
                f"{row['promotions']:,}",
                *(percent(row[k]) for k in ("all", "by_look", "by_check")),
            ]
            for row in found["false_rollbacks"]
        ],
    )
    yield (
        "Promotions of a draft that loses 6% in one source, rolled back by looks alone",
        [
            "the source that loses",
            "sources",
            "promotions",
            "within 200 of its prompts",
            "within 200 of all",
            "median of its",
            "of all",
        ],
        [
            [
                ("prose", "code")[row["domain"]],
                row["sources"],
                row["promotions"],
                percent(row["within_of_unit"]),
                percent(row["within_of_all"]),
                *("over 200" if row[k] is None else f"{row[k]:.0f}" for k in ("median_of_unit", "median_of_all")),
            ]
            for row in found["rollbacks"]
        ],
    )


def _by_change_of_others(powers: list[dict[str, Any]], effect: float) -> Section:
    """Shares of candidates with a clear gain on the first source that are promoted, by what the others change by."""
    rows = [row for row in powers if row["effect"] == effect and row["sources"] > 1]
    changes = list(dict.fromkeys(row["others"] for row in rows))
    cells = {(row["sources"], row["prompts"], row["others"]): percent(row["gate_1"]) for row in rows}
    keys = dict.fromkeys((sources, prompts) for sources, prompts, _ in cells)
    head = ["sources", "prompts a source", *(f"others {change:+g}" if change else "others ±0" for change in changes)]
    title = f"Promoted at attempt 1, the first source gains {effect:+g}, by the change of every other source"
    return title, head, [[*key, *(cells[(*key, change)] for change in changes)] for key in keys]


def percent(rate: dict[str, float]) -> str:
    """A share and its interval."""
    return f"{100 * rate['share']:.1f}% ({100 * rate['low']:.1f} to {100 * rate['high']:.1f})"
