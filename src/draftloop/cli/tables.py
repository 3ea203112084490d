"""Tables and lists on stdout, the same on a terminal and in a file."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..runtime.bars import whole_words


def console() -> Console:
    """stdout; as wide as the terminal, or 110 columns where it is none."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 110
    return Console(file=sys.stdout, width=width, highlight=False)


def cell(value: object) -> str:
    """A number with the digits that mean something, `n/a` for None, text as it is."""
    if value is None:
        return "n/a"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def percent(share: float | None) -> str:
    """A share of 1 in whole percent, `n/a` for None."""
    return "n/a" if share is None else f"{share:.0%}"


def moment(seconds: float) -> str:
    """Unix seconds as a local date and time."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def sampler_in_words(sampler: Mapping[str, float]) -> str:
    """A sampler in a few words: the temperature, the filters that are on, and its seed if it has one."""
    off = {"top_p": (0.0, 1.0), "min_p": (0.0,), "top_k": (0,)}
    said = [f"{name} {value:g}" for name, value in sampler.items() if value not in off.get(name, ())]
    return ", ".join(said)


def interval(low: float | None, high: float | None, *, signed: bool = False) -> str:
    """`[low, high]`, or `n/a`: a single prompt gives no interval."""
    if low is None or high is None:
        return "n/a"
    return f"[{low:+.3f}, {high:+.3f}]" if signed else f"[{low:.3f}, {high:.3f}]"


Columns = Mapping[str, str | Callable[[Any], object]]
"""Head to the attribute or key that is shown below it, or to a function of the record."""

ACCEPTANCE: Columns = {
    "acceptance per position": "acceptance_per_position",
    "acceptance rate": "acceptance_rate",
    "acceptance length": "acceptance_length",
    "95%": lambda row: interval(row.ci_low, row.ci_high),
}
GAIN: Columns = {
    "gained acceptance length": "delta_acceptance_length",
    "95%": lambda change: interval(change.ci_low, change.ci_high, signed=True),
}


def print_records(records: Iterable[object], columns: Columns, title: str | None = None) -> None:
    """A table with a line for each record."""

    def value(record: object, column: str | Callable[[Any], object]) -> object:
        if not isinstance(column, str):
            return column(record)
        return record[column] if isinstance(record, Mapping) else getattr(record, column)

    print_table(list(columns), [[value(record, column) for column in columns.values()] for record in records], title)


def print_table(headers: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> None:
    """A table; the first column is text, the others are aligned right. On a narrow terminal heads are broken first."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    cells = [[cell(value) for value in row] for row in rows]
    for number, header in enumerate(headers):
        if number == 0:
            table.add_column(header, overflow="fold")
            continue
        widest = max((len(row[number]) for row in cells), default=0)
        word = max(map(len, header.split()), default=0)
        table.add_column(header, justify="right", min_width=max(word, widest), no_wrap=widest >= len(header))
    for row in cells:
        table.add_row(*row)
    console().print(table)


def print_pairs(values: Mapping[str, object]) -> None:
    """Names and values, aligned; on a terminal a long value is wrapped in its column."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in values.items():
        table.add_row(name, Text(cell(value)))
    lines = Console(file=sys.stdout, width=_width(), highlight=False)
    with lines.capture() as captured:
        lines.print(table)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def print_text(text: str) -> None:
    """Sentences on stdout; on a terminal they are broken between words."""
    click.echo(whole_words(text, _width()))


def _width() -> int:
    """Of the terminal; without one no line is broken, because programs and grep read it."""
    return Console(file=sys.stdout).width if sys.stdout.isatty() else 1 << 20
