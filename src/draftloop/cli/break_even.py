"""Says where a pair does not pay on the machine that it was measured on, with the acceptance that it would take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .app import App, note

if TYPE_CHECKING:
    from ..evaluation.break_even import BreakEven


def break_even_of(app: App, target: str | None, draft: str | None, acceptance: float | None) -> BreakEven | None:
    """Whether a pair pays at an acceptance per position; None where that, or what its steps take, is not known.

    Args:
        app: its data directory knows the latencies, once a command has measured them.
        target, draft: names of the models in the data directory.
        acceptance: of the draft in question.
    """
    from ..evaluation.break_even import break_even

    if target is None or draft is None or acceptance is None:
        return None
    known = app.data.costs.of_pair(target, draft)
    return None if known is None else break_even(acceptance, known.costs)


def note_where_it_does_not_pay(app: App, target: str | None, draft: str | None, acceptance: float | None) -> None:
    """Print the warning, if there is one."""
    found = break_even_of(app, target, draft, acceptance)
    if found is not None and found.warning is not None:
        note(found.warning)
