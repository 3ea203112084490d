"""`adapters`: list the versions, choose the one in use."""

from __future__ import annotations

import time
from typing import Any

import click

from ..errors import AdapterError
from .app import App, json_option, note, print_json


@click.group()
def adapters() -> None:
    """List adapter versions, choose the one in use."""


@adapters.command("list")
@json_option
@click.pass_obj
def list_versions(app: App, as_json: bool) -> None:
    """Every version with its role, its parent and how many records it was trained on; --json has its scores too."""
    registry = app.registry
    champion, previous = registry.champion(), registry.previous()
    rows: list[dict[str, Any]] = []
    for name in registry.versions():
        manifest = registry.manifest(name)
        role = "champion" if name == champion else "previous" if name == previous else ""
        rows.append(
            {
                "version": name,
                "role": role,
                "parent": manifest.parent,
                "created": manifest.created,
                "records": len(manifest.record_ids),
                "metrics": manifest.metrics,
            }
        )
    if as_json:
        print_json({"status": "ok", "champion": champion, "previous": previous, "adapters": rows})
        return
    if not rows:
        note("no adapter yet: `train` makes one")
        return
    from .tables import print_table

    print_table(
        ["version", "role", "parent", "made", "records"],
        [
            [
                row["version"],
                row["role"],
                row["parent"] or "none",
                time.strftime("%Y-%m-%d %H:%M", time.localtime(row["created"])),
                row["records"],
            ]
            for row in rows
        ],
    )


@adapters.command()
@click.argument("version")
@click.option("--why", default="by hand", show_default=True, help="Reason, for the audit log.")
@json_option
@click.pass_obj
def promote(app: App, version: str, why: str, as_json: bool) -> None:
    """Make VERSION (vNNNN or latest) the champion: the adapter that is used from now on."""
    registry = app.registry
    name = registry.latest() if version == "latest" else version
    if name is None:
        raise AdapterError("no version to promote yet: `train` makes one")
    pointer = registry.promote(name, why)
    if as_json:
        print_json({"status": "ok", "champion": pointer.champion, "previous": pointer.previous})
    else:
        click.echo(f"champion: {pointer.champion} (previous: {pointer.previous or 'none'})")
