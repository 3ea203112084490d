"""The options that several commands share, each declared once.

An option that sets a key of the configuration takes its help, its default and its type from the key's field.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from ..config import SAMPLING, leaves
from .app import App

Command = TypeVar("Command", bound=Callable[..., Any])
Decorator = Callable[[Command], Command]


class _Path(click.Path):
    """A path as the system is given it; a command in `$(…)` that printed nothing is no path."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        """Refuse the empty string, which `Path` takes for the directory that one stands in."""
        if value == "":
            self.fail("found an empty path, expected a file; a command in $(...) may have printed nothing")
        return super().convert(value, parameter, context)


PATH = _Path(readable=False, path_type=Path)

_FIELDS = leaves()
_FLAGS = {  # mlx-lm's names, where they differ from the key's
    "models.target": "--model",
    "models.draft": "--draft-model",
    "speculative.temperature": "--temp",
    "training.gradient_accumulation_steps": "--grad-accumulation-steps",
}
_METAVARS = {"models.target": "NAME|DIR", "models.draft": "NAME|DIR", "speculative.chat_template_args": "JSON"}


def config_options(section: str, names: str) -> Callable[[Command], Command]:
    """A flag for each of the keys `names` of a section of the configuration, in this order in the help."""

    def decorate(command: Command) -> Command:
        for name in reversed(names.split()):
            command = _config_option(f"{section}.{name}")(command)
        return command

    return decorate


def _config_option(key: str) -> Callable[[Command], Command]:
    default, description = _FIELDS[key].default, _FIELDS[key].description or key
    name = _FLAGS.get(key, f"--{key.rpartition('.')[2].replace('_', '-')}")
    is_flag = isinstance(default, bool)
    can_be_text = default is not None or str in get_args(_FIELDS[key].annotation)
    kind = type(default) if isinstance(default, int | float) else str if can_be_text else float
    return click.option(
        f"{name}/--no-{name[2:]}" if is_flag else name,
        default=None,
        type=bool if is_flag else kind,
        metavar=_METAVARS.get(key),
        help=f"{description[0].upper()}{description[1:]}.  [{key}, {default}]",
        expose_value=False,
        callback=partial(_keep_flag, key),
    )


def _keep_flag(key: str, context: click.Context, _parameter: click.Parameter, value: Any) -> None:
    if value is not None:
        context.find_object(App).flags[key] = value  # type: ignore[union-attr]


model_options = config_options("models", "target draft")
sampler_options = config_options("speculative", "temperature top_p min_p top_k max_tokens seed")


def decoding_options(command: Command) -> Command:
    """How prompts are read, the sampler, the draft length and the acceptance rule of a generation."""
    command = config_options("speculative", "num_draft_tokens rule")(command)
    return config_options("speculative", "chat_template_args chat_template parse_special")(sampler_options(command))


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


def prompts_file_options(help_text: str) -> Callable[[Command], Command]:
    """`--prompts-file` and how it is read, for a command that measures on prompts."""

    def decorate(command: Command) -> Command:
        strict = "Refuse a file with a line that is no prompt; do not skip the line."
        command = config_options("speculative", "chat_template_args")(command)
        command = click.option("--strict", is_flag=True, help=strict)(command)
        return click.option("--prompts-file", type=PATH, help=help_text)(command)

    return decorate


def draft_lengths_option(default: str) -> Callable[[Command], Command]:
    """`--num-draft-tokens` for several K."""
    return click.option(
        "--num-draft-tokens",
        "lengths",
        default=default,
        show_default=True,
        callback=_draft_lengths,
        metavar="K,K,...",
        help="Draft lengths.",
    )


def _draft_lengths(_context: click.Context, _parameter: click.Parameter, value: str) -> list[int]:
    try:
        lengths = sorted({int(part) for part in value.split(",")})
    except ValueError:
        raise click.BadParameter(f"{value!r}: whole numbers with commas between them are expected: 1,2,4,8") from None
    if lengths[0] < 1 or lengths[-1] > 64:
        raise click.BadParameter(f"{value!r}: every draft length lies between 1 and 64")
    return lengths


def rule_option(auto: str) -> Callable[[Command], Command]:
    """`--rule`, saying what `auto` measures."""
    return click.option(
        "--rule",
        type=click.Choice(["auto", "greedy", *SAMPLING]),
        default="auto",
        show_default=True,
        help=f"Acceptance rule; auto: {auto}.",
    )
