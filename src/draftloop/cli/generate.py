"""`generate`: one prompt to text."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from .app import App, adapter_option, json_option, model_options, note, on_error, print_json, sampling_options


def _remember(_context: click.Context, _parameter: click.Parameter, prompt: str) -> str:
    on_error(prompt=prompt)
    return prompt


@click.command()
@click.argument("prompt", is_eager=True, callback=_remember)
@adapter_option()
@sampling_options
@model_options
@json_option
@click.pass_obj
def generate(app: App, prompt: str, adapter: str, as_json: bool) -> None:
    """Generate text from PROMPT: the target's own output, in fewer of its passes. `-` reads the prompt from stdin."""
    if prompt == "-":
        prompt = sys.stdin.buffer.read().decode("utf-8", "replace")
        on_error(prompt=prompt)
    config = app.config
    from ..text import decoding_settings
    from ..text import generate as generate_text

    settings = decoding_settings(config.speculative)
    pair = app.load_pair(adapter)
    found = generate_text(
        pair,
        prompt,
        settings,
        chat_template=config.speculative.chat_template,
        max_prompt_length=config.data.max_prompt_length,
        on_text=_ignore if as_json else _stream,
    )
    if as_json:
        print_json({"status": "ok", **asdict(found), "adapter": pair.adapter, "rule": settings.rule})
        return
    click.echo()
    note(
        f"{len(found.tokens)} tokens, {found.tokens_per_second:.0f} tokens/s, "
        f"{found.acceptance_length:.2f} tokens a round, {found.acceptance_rate:.0%} of the proposals accepted"
    )


def _stream(piece: str) -> None:
    click.echo(piece, nl=False)


def _ignore(_piece: str) -> None:
    """The JSON object has the whole text."""
