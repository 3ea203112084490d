"""The command line: parse, resolve the configuration, make one call, print text or JSON. No logic, no mlx at import.

Results go to stdout, progress and messages to stderr. A user's mistake is one line and an exit code, never a traceback.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import click

from .. import __version__
from ..config import check_environment, resolve
from ..errors import DraftloopError
from ..runtime.memory import is_out_of_memory
from ..runtime.signals import answering, leave_with
from . import adapters, benchmark, collect, demo, doctor, generate, output, retrain, schedule, speed, status, train
from .app import App, forget_error_fields, note, print_error, quiet_libraries

_MEMORY = {
    "collect-data": ("generating", "speculative.max_tokens or data.max_prompt_length, take --live"),
    "generate": ("generating", "speculative.max_tokens or speculative.prefill_step_size"),
    "train": ("loading or publishing", "training.lora.rank or training.teacher_memory_mb"),
    "retrain": ("loading or scoring", "data.max_prompt_length or speculative.max_tokens, and collect shorter texts"),
    "benchmark": ("scoring", "data.max_prompt_length or speculative.max_tokens, and collect shorter texts"),
}  # what memory is asked for by each command, and what asks for less
_LEVELS = ("debug", "info", "warning", "error")


class _Place(click.Path):
    """A path with a name: an empty one would be the working directory, which nobody means who writes "$UNSET"."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As `click.Path` does."""
        if value == "":
            self.fail("it is empty; expected a path", param, ctx)
        return super().convert(value, param, ctx)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "-c",
    "--config",
    "config_file",
    envvar="DRAFTLOOP_CONFIG",
    type=_Place(readable=False, path_type=Path, dir_okay=False),
    help="YAML to read.  [default: configs/config.yaml, else configs/default.yaml]",
)
@click.option(
    "--data-dir",
    envvar="DRAFTLOOP_DATA_DIR",
    type=_Place(readable=False, path_type=Path, file_okay=False),
    default=Path("data"),
    show_default=True,
    help="Where failures, replay, adapters and runs are kept.",
)
@click.option("-v", "--verbose", is_flag=True, help="Say more on stderr (the same as --log-level debug).")
@click.option("--log-level", type=click.Choice(_LEVELS), default="warning", show_default=True, help="Least to be said.")
@click.version_option(__version__, prog_name="draftloop")
@click.pass_context
def cli(context: click.Context, config_file: Path | None, data_dir: Path, verbose: bool, log_level: str) -> None:
    """Make a draft model guess its target better, from the tokens that the target rejected.

    The stages, in order: collect-data, train, benchmark acceptance, adapters promote. `retrain` does all but the first
    by itself, and `demo` runs them on the pair that comes with the code.
    """
    level = "DEBUG" if verbose else log_level.upper()
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr, force=True)
    for parent in data_dir.parents:
        if parent.exists() and not parent.is_dir():
            raise click.BadParameter(f"{parent} is a file", param_hint="--data-dir")
    check_environment()
    quiet_libraries()
    context.obj = App(config_file, data_dir)
    if config_file is not None:
        resolve(config_file)  # a mistake in it is told even where the command would not need it


@cli.result_callback()
@click.pass_obj
def _finish(app: App, /, result: object, **_options: object) -> object:
    app.finish()
    return result


for _command in (
    collect.collect_data_command,
    train.train_command,
    retrain.retrain_command,
    schedule.schedule_group,
    benchmark.benchmark_group,
    generate.generate_command,
    status.status_command,
    adapters.adapters_group,
    demo.demo_command,
    doctor.doctor_command,
):
    cli.add_command(_command)
benchmark.benchmark_group.add_command(speed.speed_command)


def run_and_exit(arguments: list[str] | None = None) -> None:
    """Run one command and exit with its code: 0 done, 1 fault, 2 usage, 10-13 and 130 as docs/command-line.md says."""
    output.guard()
    with answering():
        code = output.exit_code(run_command(sys.argv[1:] if arguments is None else arguments))
    leave_with(code)
    sys.exit(code)


def run_command(arguments: list[str]) -> int:
    """Run one command; returns the exit code."""
    as_json = "--json" in arguments
    forget_error_fields()
    try:
        result = cli.main(arguments, prog_name="draftloop", standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        note(error.format_message())
        return 2
    except click.ClickException as error:
        return print_error(error.format_message(), 2, as_json, hint=_hint(error))
    except DraftloopError as error:
        return print_error(str(error), error.exit_code, as_json)
    except (KeyboardInterrupt, click.Abort):
        return print_error("interrupted", 130, as_json)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return print_error(_no_memory(arguments, error), 1, as_json)
    except PermissionError as error:
        return print_error(f"permission denied: {error.filename or 'a file without a name'}", 1, as_json)
    except OSError as error:
        return print_error(f"{error.strerror or error}: {error.filename or 'no file name'}", 1, as_json)
    return result if isinstance(result, int) else 0


def _no_memory(arguments: list[str], error: BaseException) -> str:
    """What a command was doing when memory was refused, and what takes less."""
    name = next((word for word in arguments if word in _MEMORY), "this command")
    doing, lower = _MEMORY.get(name, ("working", "max_tokens or the lengths in the section data"))
    return f"out of memory while {doing} ({error}): lower {lower}, close other programs, or take smaller models"


def _hint(error: click.ClickException) -> str | None:
    context = getattr(error, "ctx", None)
    if isinstance(error, click.NoSuchOption) and error.option_name in {o for p in cli.params for o in p.opts}:
        return f"it goes before the command: `draftloop {error.option_name} …`"
    return f"see `{context.command_path} --help`" if context is not None else None
