"""Live decoding of prompts: measured acceptance and time, beside the estimate on the same outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, product
from pathlib import Path

from ..config import Rule
from ..data.joined_groups import joined_groups
from ..data.prompt_groups import opening
from ..decoding.decoder import Decoding, Settings, count_rounds, fits
from ..decoding.generate import usable_tokens
from ..decoding.generation import generation_seed
from ..decoding.teacher_forced import TargetGeneration
from ..errors import PromptError
from ..models.pair import Pair
from ..prompts.prompt import Place, Prompt, Reading, SkippedPrompt, Unusable
from .benchmark import BASE, Sample, accepted, samples_of
from .estimator import Acceptance, realised, total
from .scoring import score
from .timed_decoding import OURS, Way, take_turns


@dataclass(frozen=True)
class LiveRow:
    """One real decoding of all prompts, and the estimate on the very outputs that it emitted.

    `plain_tokens_per_second` is of K = 0, of the same decoder and in the same turns.
    """

    adapter: str
    rule: Rule
    num_draft_tokens: int
    acceptance_length: float
    estimated_acceptance_length: float
    acceptance_rate: float
    prompts: int
    tokens: int
    tokens_per_second: float
    plain_tokens_per_second: float


@dataclass(frozen=True)
class Decoded:
    """Outputs that were decoded live, and their counts."""

    generations: list[TargetGeneration]
    outputs: list[Acceptance]


def decode_all(
    pair: Pair,
    prompts: Sequence[Sequence[int]],
    settings: Settings,
    on_text: Callable[[int], None] = lambda _tokens: None,
) -> Decoded:
    """Decode every prompt speculatively with the draft as it is.

    Args:
        pair: target, draft and the adapter in use.
        prompts: tokens of each.
        settings: `sampler.seed` is the run's seed, from which each prompt's own follows.
        on_text: called with the number of tokens of each finished output.
    """
    generations, outputs = [], []
    with pair.merged():
        for prompt in prompts:
            sampler = replace(settings.sampler, seed=generation_seed(settings.sampler.seed, prompt))
            rounds = list(Decoding(pair, prompt, replace(settings, sampler=sampler, keep_bonus_draws=False)))
            output = tuple(token for round_ in rounds for token in round_.tokens)
            generations.append(TargetGeneration(tuple(prompt), output, sampler))
            outputs.append(realised(count_rounds(rounds, len(output)), len(output)))
            on_text(len(output))
    return Decoded(generations, outputs)


def samples_from_prompts(
    pair: Pair,
    prompts: Sequence[Prompt],
    settings: Settings,
    *,
    chat_template: bool,
    max_prompt_length: int,
    reading: Reading | None = None,
    on_text: Callable[[int], None] = lambda _tokens: None,
) -> tuple[list[Sample], list[str]]:
    """The target's outputs on prompts, and why some were skipped. Speculation changes the time, not the distribution.

    Raises:
        PromptError: none was usable.
    """
    usable, skipped = usable_prompts(
        pair, prompts, settings, chat_template=chat_template, max_length=max_prompt_length, reading=reading
    )
    decoded = decode_all(pair, [tokens for _, tokens in usable], settings, on_text)
    openings = [opening(prompt.text, prompt.messages) for prompt, _ in usable]
    members = zip(decoded.generations, joined_groups(openings), openings, strict=True)
    return [Sample(*member) for member in members], skipped


def usable_prompts(
    pair: Pair,
    prompts: Sequence[Prompt],
    settings: Settings,
    *,
    chat_template: bool,
    max_length: int,
    reading: Reading | None = None,
) -> tuple[list[tuple[Prompt, list[int]]], list[str]]:
    """Prompts with their tokens, and a line for each that cannot be used.

    Raises:
        PromptError: none can.
    """
    usable, skipped = [], []
    for number, prompt in enumerate(prompts, 1):
        encoded = usable_tokens(
            pair, prompt, settings, chat_template=chat_template, max_length=max_length, reading=reading
        )
        if isinstance(encoded, Unusable):
            skipped.append(str(SkippedPrompt(prompt.where or Place("prompt", number), encoded)))
        else:
            usable.append((prompt, encoded))
    if not usable:
        raise PromptError(f"none of {len(prompts)} prompts was usable: {'; '.join(skipped[:3])}")
    return usable, skipped


def decode_live(
    pair: Pair,
    samples: Sequence[Sample],
    rules: Sequence[Rule],
    draft_lengths: Sequence[int],
    adapter: tuple[str, Path] | None,
    settings: Settings,
    on_text: Callable[[int, int], None] = lambda _done, _of: None,
) -> list[LiveRow]:
    """Decode the prompts of `samples` with each rule, draft and draft length, and each time with the target alone.

    All draft lengths of a rule and draft take turns at every prompt, K = 0 among them, after the first prompt has
    warmed up each of them.

    Args:
        pair: the models.
        samples: their prompts are decoded anew, under the sampler of the first output that fits the rule.
        rules: to run.
        draft_lengths: each K >= 1.
        adapter: its name and directory, compared with the bare draft; None runs the bare draft alone.
        settings: the sampler and max_tokens; a prompt that leaves no room for so many is left out.
        on_text: called after each output with how many there are, and of how many.

    Raises:
        PromptError: not one prompt leaves room.
    """
    longest = replace(settings, num_draft_tokens=max(draft_lengths))
    prompts = [
        sample.generation.prompt_tokens
        for sample in samples
        if fits(pair, len(sample.generation.prompt_tokens), longest)
    ]
    if not prompts:
        raise PromptError(f"no prompt leaves room for {settings.max_tokens} tokens; lower --max-tokens")
    drafts: list[tuple[str, Path | None]] = [(BASE, None), *([adapter] if adapter else [])]
    done, runs = count(1), len(rules) * len(drafts) * (len(draft_lengths) + 1) * (len(prompts) + 1)
    rows = []
    for rule, (name, path) in product(rules, drafts):
        variant = pair.with_adapter(path)
        sampler = replace(samples_of(rule, samples)[0].generation.sampler, seed=settings.sampler.seed)
        ways = [Way(OURS, None, 0), *(Way(OURS, rule, k) for k in draft_lengths)]
        run = partial(
            take_turns,
            variant,
            settings=replace(longest, rule=rule, sampler=sampler),
            ways=ways,
            passes=1,
            on_text=lambda: on_text(next(done), runs),
        )
        with variant.merged():
            run(prompts[:1])
            found = run(prompts)
        plain, *speculative = (found[way][0] for way in ways)
        for one, k in zip(speculative, draft_lengths, strict=True):
            scores = score(variant, one.generations, rule, {name: path})[name]
            counted = total(one.outputs)
            rows.append(
                LiveRow(
                    adapter=name,
                    rule=rule,
                    num_draft_tokens=k,
                    acceptance_length=counted.acceptance_length,
                    estimated_acceptance_length=total(accepted(each, rule, k) for each in scores).acceptance_length,
                    acceptance_rate=counted.acceptance_rate,
                    prompts=len(one.generations),
                    tokens=counted.tokens,
                    tokens_per_second=one.tokens / one.seconds,
                    plain_tokens_per_second=plain.tokens / plain.seconds,
                )
            )
    return rows
