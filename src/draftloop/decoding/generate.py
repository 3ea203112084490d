"""Generate one output from one prompt with a pair, piece by piece: what the command `generate` calls."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from ..config import Speculative
from ..data.records import Finish, Sampler
from ..errors import PromptError
from ..evaluation.estimator import realised
from ..models.pair import Pair
from ..prompts.prompt import Prompt, Reading, Unusable, encode_prompt
from .acceptance_rules import rule_for
from .decoder import Decoding, DraftLength, Settings, check_length, count_rounds


@dataclass(frozen=True)
class Generated:
    """A finished output; `tokens` are without the stop token, `acceptance_rate` is None where nothing was drafted."""

    prompt: str
    prompt_tokens: int
    text: str
    tokens: list[int]
    finish: Finish
    acceptance_rate: float | None
    acceptance_length: float
    tokens_per_second: float


def decoding_settings(speculative: Speculative) -> Settings:
    """The decoder's settings from the configuration.

    Raises:
        ConfigError: the rule does not fit the temperature.
    """
    sampler = Sampler(
        temperature=speculative.temperature,
        top_p=speculative.top_p,
        min_p=speculative.min_p,
        top_k=speculative.top_k,
        seed=speculative.seed,
    )
    return Settings(
        sampler=sampler,
        rule=rule_for(speculative.rule, speculative.temperature),
        num_draft_tokens=speculative.num_draft_tokens,
        max_tokens=speculative.max_tokens,
        prefill_step_size=speculative.prefill_step_size,
    )


def generate(
    pair: Pair,
    prompt: str,
    settings: Settings,
    *,
    chat_template: bool,
    max_prompt_length: int,
    reading: Reading | None = None,
    draft_length: Callable[[], DraftLength] | None = None,
    on_text: Callable[[str], None] = lambda _: None,
) -> Generated:
    """Generate from one prompt; the output has the target's own distribution.

    Args:
        pair: target, draft, adapter.
        prompt: plain text.
        settings: sampler, rule, lengths; `sampler.seed` is used as it is.
        chat_template: apply the tokenizer's template where it has one.
        max_prompt_length: most prompt tokens.
        reading: what the prompt may do; by default what the configuration says by default.
        draft_length: gives what chooses K round by round, once the prompt is known to be usable; None drafts
            `num_draft_tokens` in each.
        on_text: called with each new piece of text.

    Raises:
        PromptError: the prompt is empty or too long, or the chat template gives nothing for it.
    """
    encoded = usable_tokens(
        pair, Prompt(prompt), settings, chat_template=chat_template, max_length=max_prompt_length, reading=reading
    )
    if isinstance(encoded, Unusable):
        raise PromptError(f"the prompt cannot be used: {encoded.reason}, {encoded.detail}")
    detokenizer = pair.tokenizer.detokenizer
    decoding = Decoding(pair, encoded, replace(settings, keep_bonus_draws=False), draft_length and draft_length())
    rounds, tokens = [], []
    with pair.merged():
        began = time.perf_counter()
        for round_ in decoding:
            rounds.append(round_)
            for token in round_.tokens:
                if token not in pair.stop_tokens:
                    tokens.append(token)
                    detokenizer.add_token(token)
            on_text(detokenizer.last_segment)
        seconds = time.perf_counter() - began
    detokenizer.finalize()
    on_text(detokenizer.last_segment)
    accepted = realised(count_rounds(rounds, decoding.emitted), decoding.emitted)
    assert decoding.finish is not None
    return Generated(
        prompt=prompt,
        prompt_tokens=len(encoded),
        text=detokenizer.text,
        tokens=tokens,
        finish=decoding.finish,
        acceptance_rate=accepted.acceptance_rate if accepted.drafted else None,
        acceptance_length=accepted.acceptance_length,
        tokens_per_second=decoding.emitted / seconds,
    )


def usable_tokens(
    pair: Pair,
    prompt: Prompt,
    decoding: Settings,
    *,
    chat_template: bool,
    max_length: int,
    reading: Reading | None = None,
) -> list[int] | Unusable:
    """The tokens of a prompt that fits the pair, or why it does not."""
    encoded = encode_prompt(prompt, pair.tokenizer, chat_template=chat_template, max_length=max_length, reading=reading)
    if isinstance(encoded, list):
        beyond = next((token for token in encoded if token >= pair.width), None)
        if beyond is not None:  # a token that the tokenizer has and a model has no row for
            return Unusable(
                "unknown token", f"target and draft share tokens up to {pair.width - 1:,}, found {beyond:,}"
            )
        try:
            check_length(pair, len(encoded), decoding)
        except PromptError as error:
            return Unusable("too long", str(error))
    return encoded
