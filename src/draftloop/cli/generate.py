"""`generate`: one prompt to text."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING

import click

from .app import App, adapter_option, json_option, model_options, note, on_error, print_json, sampling_options
from .output import is_lost

if TYPE_CHECKING:
    from ..config import Rule
    from ..decoding.draft_length import AdaptiveDraftLength
    from ..evaluation.latency_profiles import StoredProfile
    from ..models.pair import Pair


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
def generate_command(app: App, prompt: str, adapter: str, as_json: bool) -> None:
    """Generate text from PROMPT: the target's own output, in fewer of its passes. `-` reads the prompt from stdin.

    A round drafts as many tokens as pay on this machine, by what it costs here and what was kept in the texts before
    (left aside with --seed), and the rule that `benchmark speed` found fastest. --num-draft-tokens, or
    speculative.draft_length fixed, keeps to one K and to the configured rule.
    """
    if prompt == "-":
        prompt = sys.stdin.buffer.read().decode("utf-8", "replace")
        on_error(prompt=prompt)
    config = app.config
    from ..decoding.generate import decoding_settings, generate
    from ..prompts.prompt import Reading

    settings = decoding_settings(config.speculative)
    pair = app.load_pair(adapter)
    fixed = config.speculative.draft_length == "fixed" or "speculative.num_draft_tokens" in app.flags
    paying = None
    if not fixed:
        paying = _Paying(app, pair, alone="speculative.seed" in app.flags.keys() | app.resolved.origins.keys())
        fastest = paying.fastest_rule() if config.speculative.rule == "auto" and settings.sampler.temperature else None
        settings = replace(
            settings, num_draft_tokens=config.speculative.max_draft_tokens, rule=fastest or settings.rule
        )
    found = generate(
        pair,
        prompt,
        settings,
        chat_template=config.speculative.chat_template,
        max_prompt_length=config.data.max_prompt_length,
        reading=Reading.of(config.speculative),
        draft_length=None if paying is None else partial(paying.draft_length, settings.rule),
        on_text=partial(_tell, app, as_json),
    )
    if paying is not None:
        paying.remember(settings.rule)
    if as_json:
        print_json({"status": "ok", **asdict(found), "adapter": pair.adapter, "rule": settings.rule})
        return
    click.echo()
    rate = "nothing drafted" if found.acceptance_rate is None else f"acceptance rate {found.acceptance_rate:.0%}"
    note(
        f"{len(found.tokens)} tokens, {found.tokens_per_second:.0f} tokens/s, "
        f"acceptance length {found.acceptance_length:.2f}, {rate}"
    )


class _Paying:
    """The draft length that pays, from what is known of the pair on this machine; and what a text adds to that.

    One `alone` neither goes by the texts before it nor adds to them: what is drawn depends on the lengths of rounds, so
    no other text may change these where somebody asked for the text of a seed.
    """

    def __init__(self, app: App, pair: Pair, *, alone: bool) -> None:
        from ..evaluation.latency import machine_fingerprint

        self._app, self._pair, self._alone, self._key = app, pair, alone, machine_fingerprint(pair)
        self._known = app.data.costs.of(self._key)
        self._length: AdaptiveDraftLength | None = None

    def fastest_rule(self) -> Rule | None:
        """Above temperature 0, where it was measured."""
        return None if self._known is None or self._known.advice is None else self._known.advice.rule

    def draft_length(self, rule: Rule) -> AdaptiveDraftLength:
        """By costs as they were measured once, or are now."""
        from ..decoding.draft_length import AdaptiveDraftLength, Experience

        self._app.say_where()
        most = self._app.config.speculative.max_draft_tokens
        if self._known is None or len(self._known.costs.t_target) <= most:
            self._known = self._measured(most)
        before = Experience() if self._alone else self._known.experience.get(rule, Experience())
        self._length = AdaptiveDraftLength(self._known.costs, most, before)
        return self._length

    def remember(self, rule: Rule) -> None:
        """What the text told of the draft, for the next one; what others found out meanwhile stays."""
        known = self._app.data.costs.of(self._key)  # None where it cannot be kept, which was said then
        if not self._alone and known is not None and self._length is not None:
            self._keep(replace(known, experience=known.experience | {rule: self._length.experience}))

    def _measured(self, most: int) -> StoredProfile:
        from ..evaluation.latency import QUICK, measure_latency
        from ..evaluation.latency_profiles import StoredProfile
        from .progress import Steps

        note("measuring once what decoding costs here, so that rounds are as long as it pays")
        with Steps(last_line=False) as steps:
            costs = measure_latency(self._pair, most, QUICK, partial(steps.at, "measuring"))
        known = StoredProfile(costs) if self._known is None else replace(self._known, costs=costs)
        self._keep(known)
        return known

    def _keep(self, known: StoredProfile) -> None:
        try:
            self._app.data.costs.keep(self._key, known)
        except OSError as error:
            note(f"what decoding costs here is not kept for the next text: {error}")


def _tell(app: App, as_json: bool, piece: str) -> None:
    """A piece of the text as it comes, once it is said where it comes from; the JSON object has the whole text."""
    app.say_where()
    if as_json:
        return
    click.echo(piece, nl=False)
    if is_lost():
        raise click.exceptions.Exit(0)  # nobody reads the rest
