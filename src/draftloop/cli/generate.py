"""`generate`: one prompt to text."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING

import click

from .app import App, adapter_option, json_option, model_options, note, on_error, print_json, sampling_options

if TYPE_CHECKING:
    from ..known_costs import Known
    from ..pair import Pair
    from ..timings import Costs


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
    """Generate text from PROMPT: the target's own output, in fewer of its passes. `-` reads the prompt from stdin.

    A round drafts as many tokens as pay on this machine, by the rule that `benchmark speed` found fastest here.
    --num-draft-tokens, or speculative.draft_length fixed, keeps to one K and to the configured rule.
    """
    if prompt == "-":
        prompt = sys.stdin.buffer.read().decode("utf-8", "replace")
        on_error(prompt=prompt)
    config = app.config
    from ..text import decoding_settings
    from ..text import generate as generate_text

    settings = decoding_settings(config.speculative)
    pair = app.load_pair(adapter)
    fixed = config.speculative.draft_length == "fixed" or "speculative.num_draft_tokens" in app.flags
    costs = None
    if not fixed:
        from ..costs import fingerprint

        key = fingerprint(pair)
        known = app.data.costs.of(key)
        costs = partial(_costs, app, pair, key, known)
        settings = replace(settings, num_draft_tokens=config.speculative.max_draft_tokens)
        if known is not None and known.advice is not None and config.speculative.rule == "auto":
            fastest = known.advice.rule if settings.sampler.temperature else None
            settings = replace(settings, rule=fastest or settings.rule)
    found = generate_text(
        pair,
        prompt,
        settings,
        chat_template=config.speculative.chat_template,
        max_prompt_length=config.data.max_prompt_length,
        costs=costs,
        on_text=_ignore if as_json else _stream,
    )
    if as_json:
        print_json({"status": "ok", **asdict(found), "adapter": pair.adapter, "rule": settings.rule})
        return
    click.echo()
    kept = "no draft" if found.acceptance_rate is None else f"{found.acceptance_rate:.0%} of the proposals accepted"
    note(
        f"{len(found.tokens)} tokens, {found.tokens_per_second:.0f} tokens/s, "
        f"{found.acceptance_length:.2f} tokens a round, {kept}"
    )


def _costs(app: App, pair: Pair, key: str, known: Known | None) -> Costs:
    """What decoding costs here: as it was measured once, or measured now, in a second or so."""
    from ..costs import QUICK, measure
    from ..known_costs import Known

    most = app.config.speculative.max_draft_tokens
    if known is not None and len(known.costs.t_target) > most:
        return known.costs
    costs = measure(pair, most, QUICK)
    try:
        app.data.costs.keep(key, Known(costs, None if known is None else known.advice))
    except OSError as error:
        note(f"what decoding costs here is measured again next time: {error}")
    return costs


def _stream(piece: str) -> None:
    click.echo(piece, nl=False)


def _ignore(_piece: str) -> None:
    """The JSON object has the whole text."""
