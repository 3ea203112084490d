"""`models`: shows which of mlx-lm's text models work, and how. Loads no model."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

import click

from .app import App, note, print_json
from .options import json_option

if TYPE_CHECKING:
    from ..models.matrix import KnownModel, Matrix


@click.command()
@click.argument("names", nargs=-1)
@json_option
@click.pass_obj
def models_command(_app: App, names: tuple[str, ...], as_json: bool) -> None:
    """Show which of mlx-lm's text models work, or those of NAMES, and how.

    NAMES are model types, as `config.json` has them. The table was made by running a tiny random model of each. A model
    of your own is tried when it is loaded, whatever the table says: `doctor` shows the result.
    """
    from ..models.matrix import known_models

    found = known_models()
    unknown = sorted(set(names) - {model.name for model in found.models})
    if unknown:
        raise click.BadParameter(
            f"{unknown[0]} is no text model of mlx-lm {found.versions['mlx-lm']}", param_hint="NAMES"
        )
    shown = [model for model in found.models if not names or model.name in names]
    if as_json:
        print_json({"status": "ok", "versions": found.versions, "models": [model.model_dump() for model in shown]})
        return
    _print(found, shown)


def _print(found: Matrix, shown: list[KnownModel]) -> None:
    from .tables import print_records, print_text

    if works := [model for model in shown if model.works]:
        print_records(
            works,
            {
                "works": "name",
                "rewinds": "rewinds",
                "batches": "batches",
                "trains": lambda model: _brief(model.trains),
                "head": "head",
                "exports": "exports",
            },
        )
    for model in shown:
        if not model.works:
            print_text(f"{model.name} does not work: {model.why_not}")
    total = sum(model.works for model in found.models)
    print_text(f"{total} of {len(found.models)} work with mlx-lm {found.versions['mlx-lm']}")
    if version("mlx-lm") != found.versions["mlx-lm"]:
        note(f"installed is mlx-lm {version('mlx-lm')}; `make models` tries all of its models")


def _brief(trains: str | None) -> str:
    return {"all layers": "yes"}.get(trains or "", "in part" if (trains or "").startswith("all") else "no")
