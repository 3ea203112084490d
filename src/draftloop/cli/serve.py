"""`serve`: answers OpenAI's clients with the champion, and logs what the target rejects."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ..errors import ServeError
from .app import App, note
from .options import adapter_option, config_options, model_options

if TYPE_CHECKING:
    from ..models.pair import Pair


def _keep_capture(context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        context.find_object(App).flags["serve.capture"] = value == "on"  # type: ignore[union-attr]


@click.command()
@config_options("serve", "host port")
@click.option("--learn", type=click.Choice(["off"]), default="off", show_default=True, help="When to train.")
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
def serve_command(app: App, learn: str, adapter: str) -> None:  # noqa: ARG001 - there is one choice so far
    """Serve OpenAI's API, and log what is rejected.

    Point a client at http://127.0.0.1:8080/v1: every answer has the target's own distribution, decoded with the
    champion, and what the target rejected is logged as by collect-data. What a request leaves open is as configured; an
    answer whose length it leaves open may be as long as fits. Ctrl-C lets answers finish, a second one ends at once.
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

    run_server(app.config, app.data, load, adapter, note)
