"""`serve`: answers OpenAI's clients with the champion, and logs what the target rejects."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from ..config import variable_of
from ..errors import ServeError
from .app import App, note
from .options import adapter_option, config_options, model_options

if TYPE_CHECKING:
    from ..models.pair import Pair
    from ..serving.idle_training import ChildCommand


def _keep_capture(context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        context.find_object(App).flags["serve.capture"] = value == "on"  # type: ignore[union-attr]


@click.command()
@config_options("serve", "host port")
@config_options("serve", "learn idle_minutes")
@click.option(
    "--capture",
    type=click.Choice(["on", "off"]),
    expose_value=False,
    callback=_keep_capture,
    help="Log generations, to learn from what was rejected.  [serve.capture, on]",
)
@config_options("serve", "source max_concurrent queue api_key_file")
@adapter_option()
@config_options("speculative", "temperature top_p min_p top_k chat_template_args num_draft_tokens rule")
@model_options
@click.pass_obj
def serve_command(app: App, adapter: str) -> None:
    """Serve OpenAI's API, and log what is rejected.

    Point a client at http://127.0.0.1:8080/v1: every answer has the target's own distribution, decoded with the
    champion, and what the target rejected is logged as by collect-data. What a request leaves open is as configured; an
    answer whose length it leaves open may be as long as fits. Ctrl-C lets answers finish, a second one ends at once.

    With --learn idle it runs `retrain` while nobody asks, and begins to answer with a draft that was promoted.
    """
    try:
        from ..serving.run import run_server
    except ModuleNotFoundError as error:
        raise ServeError(
            f"the server's packages are not installed ({error.name}): pip install 'draftloop[serve]', or `make dev`"
        ) from None
    if "speculative.num_draft_tokens" in app.flags:  # one K, as `generate` takes it
        app.flags["speculative.draft_length"] = "fixed"

    def load() -> Pair:
        pair = app.load_pair("none")
        app.say_where()
        return pair

    run_server(app.config, app.data, load, adapter, note, _learning(app) if app.config.serve.learn == "idle" else None)


def _learning(app: App) -> ChildCommand:
    """`retrain` with the configuration of this server: flags go as variables, which come next after them."""
    from ..scheduling.job import draftloop_command, entry_point, interpreter
    from ..serving.idle_training import ChildCommand

    python = interpreter()
    given = {
        variable_of(key): value if isinstance(value, str) else json.dumps(value) for key, value in app.flags.items()
    }
    return ChildCommand(
        draftloop_command(python, entry_point(python), app.data_dir, app.config_file, ("retrain", "--attached")), given
    )
