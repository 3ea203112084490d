"""What every command shares: the configuration with its flags, the data directory's places, text or JSON out."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

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

Command = TypeVar("Command", bound=Callable[..., Any])


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
        """The configuration with the origin of every value; asked for once all flags are parsed."""
        found = resolve(self.config_file, self.flags)
        for key, origin in found.origins.items():
            _log.info("%s comes from %s", key, origin)
        for line in deprecations(found.config):
            note(line)
        return found

    @property
    def config(self) -> Config:
        """The configuration."""
        return self.resolved.config

    @cached_property
    def data(self) -> DataDirectory:
        """Where everything mutable lies."""
        from ..data_directory import DataDirectory

        return DataDirectory(self.data_dir, self.config.data)

    def load_pair(self, adapter: str = "champion", *, lazy_target: bool = False, as_stock: bool = False) -> Pair:
        """The configured pair with an adapter on its draft: what `--adapter` takes, a champion that is none yet too.

        The others are `pair.load_pair`'s.
        """
        path = self.data.registry.resolve(adapter)
        from ..models.pair import load_pair

        name = None if path is None else self.adapter_name(path)
        names = self.data.names
        pair = load_pair(self.config.models, path, name, lazy_target=lazy_target, as_stock=as_stock, names=names)
        try:
            names.keep(*(pair.files or ()))
        except (StoreError, LockedError) as error:  # whoever only reads here may go on
            note(f"which models these are is not kept: {error}")
        self._has_loaded = True
        _log.info(
            "pair: %s, adapter %s, %s shared ids, context %s", pair.identity, pair.adapter, pair.width, pair.context
        )
        return pair

    def say_where(self, run: RunDirectory | None = None) -> None:
        """Say once which configuration, models and data directory are used. A `run` that goes on has its own settings.

        What takes long says it as soon as there is something to work on, but no earlier: a mistake stays one line.
        """
        if not self._has_said_where:
            self._has_said_where = True
            at = self.data_dir
            note(in_a_line(self.resolved, at) if run is None else of_run(run.id, run.config(), at))

    def finish(self) -> None:
        """Where a command loaded models and ended well, it has said by now which these are."""
        if self._has_loaded:
            self.say_where()

    def adapter_name(self, path: Path) -> str:
        """What reports and records call the adapter at `path`: its version, or where it lies."""
        return path.name if path.parent == self.data.registry.root else str(path.absolute())


class ConfigOption(click.Option):
    """A flag that sets one key of the configuration, whose default, range and meaning are declared there alone."""

    def __init__(self, *names: str, key: str, **settings: Any) -> None:
        """Take click's arguments, and the dotted `key`."""
        super().__init__(list(names), expose_value=False, callback=self._keep, **settings)
        self.key = key

    def _keep(self, context: click.Context, _parameter: click.Parameter, value: Any) -> None:
        if value is not None:
            context.find_object(App).flags[self.key] = value  # type: ignore[union-attr]


def config_option(*names: str, key: str, **settings: Any) -> Callable[[Command], Command]:
    """Add a ConfigOption; its help and default come from the field."""
    described = _describe(key)
    settings.setdefault("help", described[0])
    if settings.get("is_flag"):
        settings["default"] = None

    def decorate(command: Command) -> Command:
        option = ConfigOption(*names, key=key, **settings)
        option.help = f"{settings['help']}  [{key}, {described[1]}]"
        parameters = command.__dict__.setdefault("__click_params__", [])
        parameters.append(option)
        return command

    return decorate


def _describe(key: str) -> tuple[str, str]:
    *parents, last = key.split(".")
    section: Any = Config()
    for parent in parents:
        section = getattr(section, parent)
    description = type(section).model_fields[last].description or key
    return f"{description[0].upper()}{description[1:]}.", str(getattr(section, last))


def model_options(command: Command) -> Command:
    """`--model` and `--draft-model`, wherever models are loaded."""
    command = config_option("--draft-model", key="models.draft", metavar="NAME|DIR")(command)
    return config_option("--model", key="models.target", metavar="NAME|DIR")(command)


def sampler_options(command: Command) -> Command:
    """How text is sampled, and how long, in mlx-lm's names."""
    return _config_options(
        command,
        ("--temp", "speculative.temperature", float),
        ("--top-p", "speculative.top_p", float),
        ("--min-p", "speculative.min_p", float),
        ("--top-k", "speculative.top_k", int),
        ("--max-tokens", "speculative.max_tokens", int),
        ("--seed", "speculative.seed", int),
    )


def sampling_options(command: Command) -> Command:
    """The sampler, the rule and the draft length of what is generated."""
    command = sampler_options(
        _config_options(
            command,
            ("--num-draft-tokens", "speculative.num_draft_tokens", int),
            ("--rule", "speculative.rule", str),
        )
    )
    for name in ("parse-special", "chat-template"):
        key = f"speculative.{name.replace('-', '_')}"
        command = config_option(f"--{name}/--no-{name}", key=key, is_flag=True)(command)
    return config_option("--chat-template-args", key="speculative.chat_template_args", metavar="JSON")(command)


def _config_options(command: Command, *options: tuple[str, str, type]) -> Command:
    """In this order in the help."""
    for name, key, kind in reversed(options):
        command = config_option(name, key=key, type=kind)(command)
    return command


def json_option(command: Command) -> Command:
    """`--json`: one object on stdout instead of text."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object to stdout.")(command)


def adapter_option(
    help_text: str = "Adapter of the draft.",
    default: str | None = "champion",
    by_default: str = "champion, or none until there is one",
) -> Callable[[Command], Command]:
    """`--adapter`, also as mlx-lm's `--adapter-path`; the help says what is taken `by_default`."""
    return click.option(
        "--adapter",
        "--adapter-path",
        "adapter",
        default=default,
        metavar="none|champion|latest|vNNNN|DIR",
        help=f"{help_text}  [default: {by_default}]",
    )


def print_json(values: Mapping[str, Any]) -> None:
    """One JSON object and a newline on stdout, in ASCII: prompts hold whatever a shell or a broken file puts there."""
    click.echo(json.dumps({"schema_version": SCHEMA_VERSION, **values}, indent=2, allow_nan=False))


def note(text: str) -> None:
    """Lines for the person, on stderr, of characters that do nothing to a terminal: they may quote anybody's file.

    On a terminal they are broken between words; elsewhere each stays one line.
    """
    plain = "".join(c if c.isprintable() or c == "\n" else " " for c in text)
    width = stderr_columns()
    if width is None:
        click.echo(plain, err=True)
    else:  # click would write past a bar that is shown there, into its line
        print(whole_words(plain, width), file=sys.stderr, flush=True)


def on_error(**fields: Any) -> None:
    """Fields that the JSON of an error carries beside `status` and `error`, until the command ends."""
    _error_fields.update(fields)


def forget_error_fields() -> None:
    """Begin a command with none of the fields of the one before."""
    _error_fields.clear()


def print_error(message: str, exit_code: int, as_json: bool, hint: str | None = None) -> int:
    """Say what went wrong, as one line and, where JSON was asked for, as an object; returns the exit code."""
    line = " ".join(message.split())
    if as_json:
        status = {10: "nothing_to_do", 12: "inconclusive", 13: "locked", 130: "interrupted"}.get(exit_code, "error")
        print_json({"status": status, **_error_fields, "error": line, "exit_code": exit_code})
    label = {10: "nothing to do", 12: "inconclusive", 13: "locked", 130: "stopped"}.get(exit_code, "error")
    note(f"{label}: {line}" + (f" ({hint})" if hint else ""))
    return exit_code


def quiet_libraries() -> None:
    """Keep the libraries' own advice and progress bars off the terminal; before any of them is imported."""
    import os

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
