"""`adapters`: list, show, promote, roll back, prune and export the versions of the draft's adapter."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ..errors import AdapterError, DraftloopError, StoreError
from ..evaluation.units_and_levels import unit_name
from .app import App, json_option, note, print_json
from .export import export_command
from .output import Doing

if TYPE_CHECKING:
    from ..data_directory import DataDirectory
    from ..evaluation.looks import Look
    from ..registry.registry import Pointer
    from ..registry.verdicts import Verdict


@click.group()
def adapters_group() -> None:
    """List adapter versions, choose the one in use, export one."""


@adapters_group.command("list")
@json_option
@click.pass_obj
def list_versions(app: App, as_json: bool) -> None:
    """Every version with role, verdict, parent and how many records it was trained on; --json has its scores too."""
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
    for line in damage:
        note(line if "permission denied: " in line else f"damaged: {line}")
    if data.registry.pruned():
        note(f"weights deleted as old ones: {', '.join(data.registry.pruned())}")
    if not rows:
        note("no adapter yet: `train` makes one")
        return
    from .tables import print_table

    names = ("version", "role", "verdict", "parent", "created", "records")
    print_table(
        ["version", "role", "verdict", "parent", "made", "records"],
        [[_shown(name, row[name]) for name in names] for row in rows],
    )


@adapters_group.command("show")
@click.argument("version")
@json_option
@click.pass_obj
def show_version(app: App, version: str, as_json: bool) -> None:
    """All about VERSION (vNNNN, champion or latest): origin, scores, verdict, and whether its files are whole."""
    data = app.data
    path = data.registry.resolve(version) if version != "none" else None
    if path is None:
        raise AdapterError(f"{version} is the bare draft; name a version (`adapters list`)")
    manifest = data.registry.verify(path)
    if manifest is None:
        raise AdapterError(f"{path} is no version of this data directory; name one of `adapters list`")
    verdict = data.verdicts.of(manifest.name)
    row = _row(data, manifest.name, _roles(data))
    if as_json:
        values = {**row, "files": {name: asdict(found) for name, found in manifest.files.items()}, "whole": True}
        more = {"config": manifest.config, "record_ids": manifest.record_ids, "pair": manifest.pair}
        more["pair"] = asdict(manifest.pair) if manifest.pair else None
        looks = [asdict(look) for look in _looks(data, manifest.name)]
        print_json({"status": "ok", **values, **more, "verdict": asdict(verdict) if verdict else None, "looks": looks})
        return
    from .tables import print_pairs

    print_pairs(
        {
            "version": f"{manifest.name} ({row['role'] or 'not in use'})",
            "made": _shown("created", manifest.created),
            "parent": manifest.parent or "none: the bare draft",
            "trained on": f"{len(manifest.record_ids)} records",
            "made for draft": manifest.pair.draft[:12] if manifest.pair else "unknown",
            "files": ", ".join(f"{name} ({found.size:,} bytes)" for name, found in manifest.files.items()) + ": whole",
            "verdict": verdict.outcome if verdict else "none yet; `status` says when `retrain` gates it",
            **({"why": "\n".join(verdict.reasons)} if verdict else {}),
            **_spread(verdict),
            **({"compared with": verdict.champion or "the bare draft"} if verdict else {}),
            **({"attempt": f"{verdict.attempt} of epoch {verdict.epoch}"} if verdict and verdict.epoch else {}),
            **_said_of_looks(data, manifest.name),
        }
    )


@adapters_group.command("promote", cls=Doing)
@click.argument("version")
@click.option("--why", default="by hand", show_default=True, help="Reason, for the audit log.")
@json_option
@click.pass_obj
def promote_version(app: App, version: str, why: str, as_json: bool) -> None:
    """Make VERSION (vNNNN, latest, or none for the bare draft) the champion, without asking the gate."""
    from ..retraining.gate_step import watch_from_now

    registry = app.data.registry
    name = {"latest": registry.latest(), "none": None}.get(version, version)
    if name is None and version == "latest":
        raise AdapterError("no version to promote yet: `train` makes one")
    before = registry.pointer()
    pointer = registry.promote(name, why)
    if name is not None:
        app.data.verdicts.give_by_hand(name, before.champion, before.sequence, why)
    watch_from_now(app.data, app.config, pointer)
    _print_pointer(pointer, as_json)


@adapters_group.command("rollback", cls=Doing)
@click.option("--why", default="by hand", show_default=True, help="Reason, for the audit log.")
@json_option
@click.pass_obj
def rollback_version(app: App, why: str, as_json: bool) -> None:
    """Go back to the champion before this one; a second time comes back again.

    What is rolled back is promoted by hand alone from then on, and so is what was trained on top of it.
    """
    from ..retraining.gate_step import watch_from_now

    pointer = app.data.registry.rollback(why)
    watch_from_now(app.data, app.config, pointer)
    _print_pointer(pointer, as_json)


@adapters_group.command("prune", cls=Doing)
@click.option("--keep", type=click.IntRange(min=1), help="Newest versions to keep.  [default: retrain.keep_versions]")
@click.option("--dry-run", is_flag=True, help="Say what would be deleted; delete nothing.")
@json_option
@click.pass_obj
def prune_versions(app: App, keep: int | None, dry_run: bool, as_json: bool) -> None:
    """Delete the weights of old versions.

    Champion, previous and a candidate without a verdict stay. So do all manifests: they say what was learned from.
    """
    from .tables import print_text

    data, count = app.data, keep or app.config.retrain.keep_versions
    protected = [name for name in data.registry.versions()[-1:] if not _is_judged(data, name)]
    work = data.registry.prunable if dry_run else data.registry.prune
    removed = work(count, protected)
    if as_json:
        print_json({"status": "ok", "dry_run": dry_run, "pruned": removed, "kept": data.registry.versions()})
    else:
        print_text(f"{'would delete' if dry_run else 'deleted'} the weights of: {', '.join(removed) or 'none'}")


def _spread(verdict: Verdict | None) -> dict[str, str]:
    """How unlike the prompts are in what they gain: shown, and no condition."""
    numbers = verdict.numbers if verdict else {}
    if numbers.get("worse_share") is None:
        return {}
    decile = f"for the worst tenth the acceptance length changes by {numbers['worst_decile']:+.3f} or less"
    return {"prompts that got worse": f"{numbers['worse_share']:.0%}; {decile}"}


def _looks(data: DataDirectory, name: str) -> tuple[Look, ...]:
    """The looks at a version since its promotion, if it is the one in use."""
    pointer = data.registry.pointer()
    watching = data.promotion_watch.of(pointer) if name == pointer.champion else None
    return watching.made if watching else ()


def _said_of_looks(data: DataDirectory, name: str) -> dict[str, str]:
    """A line for every look; nothing where there was none yet."""
    said = [
        f"{look.kind} at {look.groups} new held-out prompts"
        + (f" of {unit_name(look.unit)}" if look.kind != "check of all" else "")
        + (": cut off" if look.p_value is None else f": not proven worse (p = {look.p_value:.3g} > {look.alpha:.3g})")
        for look in _looks(data, name)
    ]
    return {"since its promotion": "\n".join(said)} if said else {}


def _is_judged(data: DataDirectory, name: str) -> bool:
    """Whether a version has a verdict; of a damaged one nobody knows."""
    try:
        return data.verdicts.of(name) is not None
    except StoreError:
        return False


def _roles(data: DataDirectory) -> dict[str, str]:
    """What a version is, beside its verdict."""
    pointer = data.registry.pointer()
    found = dict.fromkeys(data.registry.rolled_back(), "rolled back")
    found |= {name: "previous" for name in [pointer.previous] if name and name not in found}
    return found | {name: "champion" for name in [pointer.champion] if name}


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


def _shown(name: str, value: Any) -> Any:
    if name == "created":
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(value))
    return {"parent": "none", "verdict": "none yet"}.get(name, value) if value is None else value


def _print_pointer(pointer: Pointer, as_json: bool) -> None:
    from .tables import print_text

    if as_json:
        print_json({"status": "ok", "champion": pointer.champion, "previous": pointer.previous})
    else:
        champion = pointer.champion or "none: the bare draft is in use"
        print_text(f"champion: {champion} (previous: {pointer.previous or 'none'})")


adapters_group.add_command(export_command)
