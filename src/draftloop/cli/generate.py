"""`generate`: generates one output from one prompt."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING

import click

from .app import App, note, on_error, print_json
from .options import adapter_option, decoding_options, json_option, model_options
from .output import is_lost

if TYPE_CHECKING:
    from ..config import Rule
    from ..decoding.draft_length import AdaptiveDraftLength, LatencyProfile
    from ..models.pair import Pair


def _remember(_context: click.Context, _parameter: click.Parameter, prompt: str) -> str:
    on_error(prompt=prompt)
    return prompt


@click.command()
@click.argument("prompt", is_eager=True, callback=_remember)
@adapter_option()
@decoding_options
@model_options
@json_option
@click.pass_obj
def generate_command(app: App, prompt: str, adapter: str, as_json: bool) -> None:
    """Generate from a prompt, speculatively.

    PROMPT `-` reads the prompt from stdin. The output has the target's own distribution, in fewer target passes. Each
    round takes the K that maximises expected tokens/s, from the latencies of this machine and the acceptance of earlier
    outputs (with --seed: of this output alone), and the acceptance rule that `benchmark speed` found fastest.
    --num-draft-tokens, or speculative.draft_length fixed, keeps to one K and to the configured rule.
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
    adaptive = None
    if not fixed:
        alone = "speculative.seed" in app.flags.keys() | app.resolved.origins.keys()
        adaptive = _DraftLengths(app, pair, alone=alone)
        is_open = config.speculative.rule == "auto" and settings.sampler.temperature
        rule = (adaptive.fastest_rule() if is_open else None) or settings.rule
        settings = replace(settings, num_draft_tokens=config.speculative.max_draft_tokens, rule=rule)
    output = generate(
        pair,
        prompt,
        settings,
        chat_template=config.speculative.chat_template,
        max_prompt_length=config.data.max_prompt_length,
        reading=Reading.of(config.speculative),
        draft_length=None if adaptive is None else partial(adaptive.draft_length, settings.rule),
        on_text=partial(_print_piece, app, as_json),
    )
    if adaptive is not None:
        adaptive.remember(settings.rule)
    if as_json:
        print_json({"status": "ok", **asdict(output), "adapter": pair.adapter, "rule": settings.rule})
        return
    click.echo()
    rate = "nothing drafted" if output.acceptance_rate is None else f"acceptance rate {output.acceptance_rate:.0%}"
    note(
        f"{len(output.tokens)} tokens, {output.tokens_per_second:.0f} tokens/s, "
        f"acceptance length {output.acceptance_length:.2f}, {rate}"
    )


class _DraftLengths:
    """The adaptive draft length, from the latency profile of this machine and the acceptance of earlier outputs.

    `alone` ignores earlier outputs and keeps nothing for later ones: the sampled tokens depend on the lengths of the
    rounds, so no other output may change those of an output with a given seed.
    """

    def __init__(self, app: App, pair: Pair, *, alone: bool) -> None:
        from ..evaluation.latency import machine_fingerprint

        self._app, self._pair, self._alone = app, pair, alone
        self._greedy = app.config.speculative.temperature == 0
        self._key = machine_fingerprint(pair, greedy=self._greedy)
        self._known = app.data.costs.of(self._key)
        self._length: AdaptiveDraftLength | None = None

    def fastest_rule(self) -> Rule | None:
        """The rule that `benchmark speed` found fastest above temperature 0; None where it was not measured."""
        return None if self._known is None or self._known.advice is None else self._known.advice.rule

    def draft_length(self, rule: Rule) -> AdaptiveDraftLength:
        """By latencies that are known, or are measured now."""
        from ..decoding.draft_length import AdaptiveDraftLength, Experience

        self._app.say_where()
        most = self._app.config.speculative.max_draft_tokens
        self._known = self._app.data.costs.of_or_measured(self._key, most, partial(self._measured, most), note)
        before = Experience() if self._alone else self._known.experience.get(rule, Experience())
        self._length = AdaptiveDraftLength(self._known.costs, most, before)
        return self._length

    def remember(self, rule: Rule) -> None:
        """Keep the acceptance of this output for later ones, beside what other processes kept meanwhile."""
        known = self._app.data.costs.of(self._key)  # None: it cannot be kept, and that was said
        if not self._alone and known is not None and self._length is not None:
            learned = known.experience | {rule: self._length.experience}
            self._app.data.costs.keep_or_say(self._key, replace(known, experience=learned), note)

    def _measured(self, most: int) -> LatencyProfile:
        from ..evaluation.latency import QUICK, measure_latency
        from .progress import Steps

        with Steps(last_line=False) as steps:
            return measure_latency(self._pair, most, QUICK, partial(steps.at, "measuring"), greedy=self._greedy)


def _print_piece(app: App, as_json: bool, piece: str) -> None:
    """Print a piece of the output as it comes, after where it comes from; with --json the object has it all."""
    app.say_where()
    if as_json:
        return
    click.echo(piece, nl=False)
    if is_lost():
        raise click.exceptions.Exit(0)  # nobody reads the rest
