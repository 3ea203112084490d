"""The command line, one file per command: parse, resolve the configuration, make one call, print text or JSON.

In: arguments, environment variables, a YAML file. Out: results on stdout, progress and messages on stderr, an exit
code; a user's mistake is one line, never a traceback.
Knows nothing of how anything is computed. Imports no MLX before a command needs it.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

import click

from .. import __version__
from ..config import check_environment, resolve
from ..errors import DraftloopError
from ..runtime.memory import is_out_of_memory
from ..runtime.process import prepare_process
from ..runtime.signals import answering, leave_with
from . import (
    adapters,
    benchmark,
    collect,
    demo,
    doctor,
    generate,
    log,
    models,
    output,
    retrain,
    schedule,
    serve,
    speed,
    status,
    train,
)
from .app import App, forget_error_fields, note, print_error

_SHORTER = "data.max_prompt_length or speculative.max_tokens, and collect shorter outputs"
_MEMORY = {  # what each command needs memory for, and what to lower
    "collect-data": ("generating", "speculative.max_tokens or data.max_prompt_length, take --live"),
    "generate": ("generating", "speculative.max_tokens or speculative.prefill_step_size"),
    "train": ("loading or publishing", "training.lora.rank or training.teacher_memory_mb"),
    "retrain": ("loading or scoring", _SHORTER),
    "benchmark": ("scoring", _SHORTER),
}
_LEVELS = ("debug", "info", "warning", "error")


class _NamedPath(click.Path):
    """A path that is not empty: nobody who writes "$UNSET" means the working directory."""

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
    type=_NamedPath(readable=False, path_type=Path, dir_okay=False),
    help="Configuration, YAML.  [default: configs/config.yaml, else configs/default.yaml]",
)
@click.option(
    "--data-dir",
    envvar="DRAFTLOOP_DATA_DIR",
    type=_NamedPath(readable=False, path_type=Path, file_okay=False),
    default=Path("data"),
    show_default=True,
    help="Directory of failures, replay, adapters and runs.",
)
@click.option("-v", "--verbose", is_flag=True, help="Log everything on stderr (as --log-level debug).")
@click.option("--log-level", type=click.Choice(_LEVELS), default="warning", show_default=True, help="Log level.")
@click.version_option(__version__, prog_name="draftloop")
@click.pass_context
def cli(context: click.Context, config_file: Path | None, data_dir: Path, verbose: bool, log_level: str) -> None:
    """Speculative decoding whose draft learns from its rejected tokens.

    The stages, in order: collect-data, train, benchmark acceptance, adapters promote. `retrain` does all but the first
    by itself. `demo` runs them on the embedded pair, which comes with the code.
    """
    level = "DEBUG" if verbose else log_level.upper()
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr, force=True)
    for parent in data_dir.parents:
        if parent.exists() and not parent.is_dir():
            raise click.BadParameter(f"{parent} is a file", param_hint="--data-dir")
    check_environment()
    # the libraries' own advice and progress bars stay off the terminal; they read these when they are imported
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    context.obj = App(config_file, data_dir)
    if config_file is not None:
        resolve(config_file)  # a mistake in it is an error even if the command does not need it


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
    serve.serve_command,
    benchmark.benchmark_group,
    generate.generate_command,
    status.status_command,
    adapters.adapters_group,
    log.log_group,
    demo.demo_command,
    doctor.doctor_command,
    models.models_command,
):
    cli.add_command(_command)
benchmark.benchmark_group.add_command(speed.speed_command)


def run_and_exit(arguments: list[str] | None = None) -> None:
    """Run one command and exit with its code: 0 done, 1 fault, 2 usage, 10-13 and 130 as docs/command-line.md says."""
    prepare_process()
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
        context, hint = getattr(error, "ctx", None), None
        if isinstance(error, click.NoSuchOption) and error.option_name in {o for p in cli.params for o in p.opts}:
            hint = f"it goes before the command: `draftloop {error.option_name} …`"
        elif context is not None:
            hint = f"see `{context.command_path} --help`"
        return print_error(error.format_message(), 2, as_json, hint=hint)
    except DraftloopError as error:
        return print_error(str(error), error.exit_code, as_json)
    except (KeyboardInterrupt, click.Abort):
        return print_error("interrupted", 130, as_json)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        doing, lower = next(
            (_MEMORY[word] for word in arguments if word in _MEMORY),
            ("working", "max_tokens or the lengths in the section data"),
        )
        remedy = f"lower {lower}, close other programs, or take smaller models"
        return print_error(f"out of memory while {doing} ({error}): {remedy}", 1, as_json)
    except OSError as error:
        why = "permission denied" if isinstance(error, PermissionError) else error.strerror or error
        return print_error(f"{why}: {error.filename or 'a file without a name'}", 1, as_json)
    return result if isinstance(result, int) else 0
