"""`status`: what has piled up, without loading a model."""

from __future__ import annotations

import click

from .app import App, json_option, note, print_json

_STATES = {"new": "new", "used": "used in training", "held_out": "kept for validation and benchmark"}


@click.command()
@json_option
@click.pass_obj
def status(app: App, as_json: bool) -> None:
    """Failures new and used, splits, sources, adapters. Loads no model."""
    from ..overview import overview

    found = overview(app.log, app.registry, app.config.training.min_failure_cases)
    if as_json:
        print_json({"status": "ok", **found})
        return
    from .tables import print_pairs

    splits, sources = (
        ", ".join(f"{n} {name}" for name, n in found[key].items()) or "none" for key in ("splits", "sources")
    )
    states = ", ".join(f"{found[f'failures_{state}']} {what}" for state, what in _STATES.items())
    print_pairs(
        {
            "generations": found["generations"],
            "failures": f"{found['failures']} ({states})",
            "retraining": f"worth while from {found['min_failure_cases']} new failures of the train split",
            "splits": splits,
            "sources": sources,
            "adapters": ", ".join(found["adapters"]) or "none",
            "champion": found["champion"] or "none: the bare draft is in use",
            "previous": found["previous"] or "none",
            "log": f"{found['log']} ({found['log_bytes']:,} bytes)",
        }
    )
    for damage in found["damage"]:
        note(f"damaged: {damage}")
    note(
        f"Prompts and outputs lie in {found['log']} in plain text, for your eyes alone; delete the file to forget them."
    )
