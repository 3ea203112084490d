"""`App` is what all commands share: configuration, data directory and pair. Prints JSON, notes and errors."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..config import Config, Resolved, deprecations, resolve
from ..errors import LockedError, StoreError
from ..runtime.bars import stderr_columns, whole_words
from ..whereabouts import in_a_line, of_run

if TYPE_CHECKING:
    from ..data_directory import DataDirectory
    from ..models.pair import Pair
    from ..training.run import RunDirectory

_log = logging.getLogger(__name__)

SCHEMA_VERSION = 1  # of everything that --json prints
_error_fields: dict[str, Any] = {}


@dataclass
class App:
    """One invocation: where its configuration and data are, and the flags that were given."""

    config_file: Path | None
    data_dir: Path
    flags: dict[str, Any] = field(default_factory=dict)
    _has_loaded: bool = False
    _has_said_where: bool = False

    @cached_property
    def resolved(self) -> Resolved:
        """The configuration with the origin of every value; read once all flags are parsed."""
        resolved = resolve(self.config_file, self.flags)
        for key, origin in resolved.origins.items():
            _log.info("%s comes from %s", key, origin)
        for line in deprecations(resolved.config):
            note(line)
        return resolved

    @property
    def config(self) -> Config:
        """The configuration."""
        return self.resolved.config

    @cached_property
    def data(self) -> DataDirectory:
        """The data directory."""
        from ..data_directory import DataDirectory

        return DataDirectory(self.data_dir, self.config.data)

    def load_pair(self, adapter: str = "champion", *, lazy_target: bool = False) -> Pair:
        """Load the configured pair.

        Args:
            adapter: of the draft, as `--adapter` takes it; a champion that does not exist yet is the bare draft.
            lazy_target: as in `models.pair.load_pair`.
        """
        path = self.data.registry.resolve(adapter)
        from ..models.pair import load_pair

        name = None if path is None else self.data.registry.name_of(path)
        names = self.data.names
        pair = load_pair(self.config.models, path, name, lazy_target=lazy_target, names=names)
        try:
            names.keep(*(pair.files or ()))
            if pair.self_layers is not None and self.config.models.self_layers is None and names.has_records():
                names.self_layers.keep(pair.identity.target, pair.self_layers)
        except (StoreError, LockedError) as error:  # whoever only reads here may go on
            note(f"the models' names are not kept: {error}")
        self._has_loaded = True
        _log.info(
            "pair: %s, adapter %s, %s shared tokens, context %s", pair.identity, pair.adapter, pair.width, pair.context
        )
        return pair

    def say_where(self, run: RunDirectory | None = None) -> None:
        """Say once which configuration, models and data directory are used; a resumed `run` has its own settings.

        A long command says so as soon as it has something to work on, but no earlier: a mistake stays one line.
        """
        if not self._has_said_where:
            self._has_said_where = True
            at = self.data_dir
            note(in_a_line(self.resolved, at) if run is None else of_run(run.id, run.config(), at))

    def finish(self) -> None:
        """After a command that loaded models and ended well: say where it worked, if it has not yet."""
        if self._has_loaded:
            self.say_where()


def print_json(values: Mapping[str, Any]) -> None:
    """One JSON object and a newline on stdout, in ASCII: prompts hold whatever a shell or a broken file puts there."""
    click.echo(json.dumps({"schema_version": SCHEMA_VERSION, **values}, indent=2, allow_nan=False))


def note(text: str) -> None:
    """Print lines for a person on stderr, without control characters: they may quote anybody's file.

    On a terminal they are broken between words; elsewhere each stays one line.
    """
    plain = "".join(c if c.isprintable() or c == "\n" else " " for c in text)
    width = stderr_columns()
    if width is None:
        click.echo(plain, err=True)
    else:  # click would write past a bar that is shown there, into its line
        print(whole_words(plain, width), file=sys.stderr, flush=True)


def note_damage(damage: Iterable[str]) -> None:
    """Name each damaged file or line; one that this user may not read is not called damaged."""
    for line in damage:
        note(line if "permission denied: " in line else f"damaged: {line}")


def on_error(**fields: Any) -> None:
    """Add fields to the JSON of an error of this command, beside `status` and `error`."""
    _error_fields.update(fields)


def forget_error_fields() -> None:
    """Begin a command without the fields of the one before."""
    _error_fields.clear()


def print_error(message: str, exit_code: int, as_json: bool, hint: str | None = None) -> int:
    """Print an error as one line, and with --json as an object too; returns the exit code."""
    line = " ".join(message.split())
    if as_json:
        status = {10: "nothing_to_do", 12: "inconclusive", 13: "locked", 130: "interrupted"}.get(exit_code, "error")
        print_json({"status": status, **_error_fields, "error": line, "exit_code": exit_code})
    label = {10: "nothing to do", 12: "inconclusive", 13: "locked", 130: "stopped"}.get(exit_code, "error")
    note(f"{label}: {line}" + (f" ({hint})" if hint else ""))
    return exit_code
