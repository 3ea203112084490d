"""`adapters`: list, show, promote, roll back, prune and export the adapter versions."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ..errors import AdapterError, DraftloopError, StoreError
from ..evaluation.units_and_levels import unit_name
from .app import App, note, note_damage, print_json
from .export import export_command
from .options import json_option
from .output import Doing

if TYPE_CHECKING:
    from ..data_directory import DataDirectory
    from ..evaluation.looks import Look
    from ..registry.registry import Pointer


@click.group()
def adapters_group() -> None:
    """List, promote and export adapter versions."""


@adapters_group.command("list")
@json_option
@click.pass_obj
def list_versions(app: App, as_json: bool) -> None:
    """List all versions.

    With role, verdict, parent and how many records each was trained on; --json has its scores too.
    """
    from ..status import damaged_files

    data = app.data
    pointer, roles = data.registry.pointer(), _roles(data)
    rows, damage = [], []
    for name in data.registry.versions():
        try:
            rows.append(_row(data, name, roles))
        except DraftloopError as error:  # the others are still to be seen
            damage.append(str(error))
    damage += damaged_files(data)
    if as_json:
        used = {"champion": pointer.champion, "previous": pointer.previous}
        print_json({"status": "ok", **used, "adapters": rows, "pruned": data.registry.pruned(), "damage": damage})
        return
    note_damage(damage)
    if data.registry.pruned():
        note(f"weights deleted as old ones: {', '.join(data.registry.pruned())}")
    if not rows:
        note("no adapter yet: `train` makes one")
        return
    from .tables import moment, print_records

    print_records(
        rows,
        {
            "version": "version",
            "role": "role",
            "verdict": lambda row: row["verdict"] or "none yet",
            "parent": lambda row: row["parent"] or "none",
            "made": lambda row: moment(row["created"]),
            "records": "records",
        },
    )


@adapters_group.command("show")
@click.argument("version")
@json_option
@click.pass_obj
def show_version(app: App, version: str, as_json: bool) -> None:
    """Show one version and its verdict.

    VERSION is vNNNN, champion or latest. Shows its origin, scores and verdict, and checks its files.
    """
    data = app.data
    path = data.registry.resolve(version) if version != "none" else None
    if path is None:
        raise AdapterError(f"{version} is the bare draft; name a version (`adapters list`)")
    manifest = data.registry.verify(path)
    if manifest is None:
        raise AdapterError(f"{path} is no version of this data directory; name one of `adapters list`")
    verdict, looks = data.verdicts.of(manifest.name), _looks(data, manifest.name)
    row = _row(data, manifest.name, _roles(data))
    if as_json:
        print_json(
            {
                "status": "ok",
                **row,
                "files": {name: asdict(file) for name, file in manifest.files.items()},
                "whole": True,
                "config": manifest.config,
                "record_ids": manifest.record_ids,
                "pair": asdict(manifest.pair) if manifest.pair else None,
                "verdict": asdict(verdict) if verdict else None,
                "looks": [asdict(look) for look in looks],
            }
        )
        return
    from .tables import moment, print_pairs

    rows = {
        "version": f"{manifest.name} ({row['role'] or 'not in use'})",
        "made": moment(manifest.created),
        "parent": manifest.parent or "none: the bare draft",
        "trained on": f"{len(manifest.record_ids)} records",
        "made for draft": manifest.pair.draft[:12] if manifest.pair else "unknown",
        "files": ", ".join(f"{name} ({file.size:,} bytes)" for name, file in manifest.files.items()) + ": whole",
        "verdict": verdict.outcome if verdict else "none yet; `status` says when `retrain` gates it",
    }
    if verdict:
        rows["why"] = "\n".join(verdict.reasons)
        if verdict.numbers.get("worse_share") is not None:  # how much prompts differ in their gain: no condition
            worse, decile = verdict.numbers["worse_share"], verdict.numbers["worst_decile"]
            tenth = f"in the worst tenth the acceptance length changes by {decile:+.3f} or less"
            rows["prompts that got worse"] = f"{worse:.0%}; {tenth}"
        rows["compared with"] = verdict.champion or "the bare draft"
        if verdict.epoch:
            rows["attempt"] = f"{verdict.attempt} of epoch {verdict.epoch}"
    if looks:
        rows["since its promotion"] = "\n".join(map(_look_in_words, looks))
    print_pairs(rows)


def _warn_where_it_does_not_pay(app: App, name: str) -> None:
    """By the acceptance on validation generations that the version had when it was made."""
    from .break_even import note_where_it_does_not_pay

    manifest = app.data.registry.manifest(name)
    best = manifest.metrics.get("best")
    if manifest.pair is not None and isinstance(best, dict):
        note_where_it_does_not_pay(app, manifest.pair.target, manifest.pair.draft, best.get("acceptance"))


@adapters_group.command("promote", cls=Doing)
@click.argument("version")
@click.option("--why", default="by hand", show_default=True, help="Reason, for the audit log.")
@json_option
@click.pass_obj
def promote_version(app: App, version: str, why: str, as_json: bool) -> None:
    """Make a version the champion.

    VERSION is vNNNN, latest, or none for the bare draft. The gate is not asked.
    """
    from ..retraining.by_hand import promote_by_hand

    name = {"latest": app.data.registry.latest(), "none": None}.get(version, version)
    if name is None and version == "latest":
        raise AdapterError("no version to promote yet: `train` makes one")
    _print_pointer(promote_by_hand(app.data, app.config, name, why), as_json)
    if not as_json and name is not None:
        _warn_where_it_does_not_pay(app, name)


@adapters_group.command("rollback", cls=Doing)
@click.option("--why", default="by hand", show_default=True, help="Reason, for the audit log.")
@json_option
@click.pass_obj
def rollback_version(app: App, why: str, as_json: bool) -> None:
    """Go back to the previous champion.

    A second rollback undoes the first. From then on a version that was rolled back, and every version trained on top of
    it, is promoted only by hand.
    """
    from ..retraining.by_hand import rollback_by_hand

    _print_pointer(rollback_by_hand(app.data, app.config, why), as_json)


@adapters_group.command("prune", cls=Doing)
@click.option("--keep", type=click.IntRange(min=1), help="Newest versions to keep.  [default: retrain.keep_versions]")
@click.option("--dry-run", is_flag=True, help="Say what would be deleted; delete nothing.")
@json_option
@click.pass_obj
def prune_versions(app: App, keep: int | None, dry_run: bool, as_json: bool) -> None:
    """Delete the weights of old versions.

    Champion, previous and a candidate without a verdict stay. So do all manifests, which name the training records.
    """
    from .tables import print_text

    data, count = app.data, keep or app.config.retrain.keep_versions
    protected = [name for name in data.registry.versions()[-1:] if not _has_verdict(data, name)]
    work = data.registry.prunable if dry_run else data.registry.prune
    removed = work(count, protected)
    if as_json:
        print_json({"status": "ok", "dry_run": dry_run, "pruned": removed, "kept": data.registry.versions()})
    else:
        print_text(f"{'would delete' if dry_run else 'deleted'} the weights of: {', '.join(removed) or 'none'}")


def _looks(data: DataDirectory, name: str) -> tuple[Look, ...]:
    """The interim tests of a version since its promotion, if it is the champion."""
    pointer = data.registry.pointer()
    watching = data.promotion_watch.of(pointer) if name == pointer.champion else None
    return watching.made if watching else ()


def _look_in_words(look: Look) -> str:
    unit = f" of {unit_name(look.unit)}" if look.kind != "check of all" else ""
    end = "cut off" if look.p_value is None else f"not proven worse (p = {look.p_value:.3g} > {look.alpha:.3g})"
    return f"{look.kind} at {look.groups} new held-out prompts{unit}: {end}"


def _has_verdict(data: DataDirectory, name: str) -> bool:
    """Whether a version has a verdict that can be read."""
    try:
        return data.verdicts.of(name) is not None
    except StoreError:
        return False


def _roles(data: DataDirectory) -> dict[str, str]:
    """The role of each version that has one: champion, previous or rolled back."""
    pointer = data.registry.pointer()
    roles = dict.fromkeys(data.registry.rolled_back(), "rolled back")
    roles |= {name: "previous" for name in [pointer.previous] if name and name not in roles}
    return roles | {name: "champion" for name in [pointer.champion] if name}


def _row(data: DataDirectory, name: str, roles: dict[str, str]) -> dict[str, Any]:
    manifest, verdict = data.registry.manifest(name), data.verdicts.of(name)
    return {
        "version": name,
        "role": roles.get(name, ""),
        "verdict": verdict.outcome if verdict else None,
        "parent": manifest.parent,
        "created": manifest.created,
        "records": len(manifest.record_ids),
        "metrics": manifest.metrics,
    }


def _print_pointer(pointer: Pointer, as_json: bool) -> None:
    """Which is the champion now."""
    from .tables import print_text

    if as_json:
        print_json({"status": "ok", "champion": pointer.champion, "previous": pointer.previous})
    else:
        champion = pointer.champion or "none: the bare draft is in use"
        print_text(f"champion: {champion} (previous: {pointer.previous or 'none'})")


adapters_group.add_command(export_command)
