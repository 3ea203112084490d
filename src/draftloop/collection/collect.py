"""Collecting: from prompts to records of what the target emits, and of what the draft proposes along it.

    prompts -> tokens -> generate_batched (target) -> simulate_rounds (both models) -> make_record -> log
                      -> or `live`: Decoding, draft and target in turn              ->

By default the target generates in batches, and the speculative rounds are simulated afterwards, from one pass of both
models (`decoding.offline_rounds`); `live` runs the decoder itself, one prompt after the other. Records of both have the
same distribution, and greedy ones are the same. Every generation has a seed of its own, derived from the run's seed and
the prompt, so the order of prompts, a resumed run or a skipped prompt changes nothing in the others.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, TypeVar

import mlx.core as mx

from ..data.log import FailureLog
from ..data.records import Record, RunConditions
from ..data.teacher_blobs import BlobFile
from ..data.teacher_top_k import encode_top_k
from ..decoding.batched_generation import FinishedOutput, OutputRequest, generate_batched
from ..decoding.decoder import Decoding, Round, Settings
from ..decoding.generate import usable_tokens
from ..decoding.generation import Generation, generation_seed
from ..decoding.offline_rounds import simulate_rounds
from ..decoding.teacher_forced import TargetGeneration
from ..errors import ConfigError, PromptError
from ..evaluation.estimator import Acceptance, realised
from ..models.pair import Pair
from ..prompts.prompt import Place, Prompt, Reading, SkippedPrompt, Unusable
from ..runtime.memory import budget, read_device, room_left
from ..runtime.signals import StopRequest
from ..store.json_values import without_surrogates
from .record import make_record

_Item = TypeVar("_Item")

ALREADY_COLLECTED = "already collected"
AT_ONCE = 1024  # prompts that are handed over together; memory says how many of them are one batch
P_BYTES = 256 << 20  # of kept distributions that tokens are drawn from: the target need not read its own outputs then
GROUP = 32  # finished outputs whose rounds are simulated and logged together


def _nobody(_tokens: int) -> None:
    """Nothing is shown."""


@dataclass(frozen=True)
class CollectSettings:
    """One collecting run. `decoding.sampler.seed` is the run's seed."""

    decoding: Settings
    source: str = "default"
    chat_template: bool = True
    max_prompt_length: int = 2048
    reading: Reading = field(default_factory=Reading)
    fresh: bool = False  # collect again what was collected under the same conditions
    limit: int | None = None  # most new generations
    live: bool = False  # run draft and target in turn, one prompt at a time


@dataclass
class CollectReport:
    """What a run did. `skipped` counts by reason, `skipped_prompts` names each."""

    prompts: int = 0
    generations: int = 0
    failures: int = 0
    acceptance: Acceptance = field(default_factory=lambda: Acceptance(0, 0, 0, 0))
    seconds: float = 0.0
    skipped: Counter[str] = field(default_factory=Counter)
    skipped_prompts: list[SkippedPrompt] = field(default_factory=list)
    interrupted: bool = False

    @property
    def tokens_per_second(self) -> float | None:
        """Emitted tokens over the time of generating and logging; None before the first token."""
        return self.acceptance.tokens / self.seconds if self.seconds > 0 and self.acceptance.tokens else None

    def to_json(self) -> dict[str, Any]:
        """Plain values; rates are None before the first generation."""
        some = self.generations > 0
        return {
            "prompts": self.prompts,
            "generations": self.generations,
            "tokens": self.acceptance.tokens,
            "rounds": int(self.acceptance.rounds),
            "acceptance_rate": self.acceptance.acceptance_rate if some else None,
            "acceptance_length": self.acceptance.acceptance_length if some else None,
            "failures": self.failures,
            "skipped": dict(self.skipped),
            "skipped_prompts": list(map(str, self.skipped_prompts)),
            "tokens_per_second": self.tokens_per_second,
            "seconds": self.seconds,
            "interrupted": self.interrupted,
        }


def batched(items: Iterable[_Item], count: int) -> Iterator[list[_Item]]:
    """Runs of `count` items; the last may be shorter."""
    rest = iter(items)
    while batch := list(islice(rest, count)):
        yield batch


@dataclass(frozen=True)
class _EncodedPrompt:
    """A prompt to generate from, and its tokens."""

    prompt: Prompt
    tokens: tuple[int, ...]


def collect_data(
    pair: Pair,
    prompts: Iterable[Prompt | SkippedPrompt],
    log: FailureLog,
    settings: CollectSettings,
    stop: StopRequest | None = None,
    on_record: Callable[[CollectReport, Record], None] | None = None,
    blobs: BlobFile | None = None,
    on_tokens: Callable[[int], None] = _nobody,
) -> CollectReport:
    """Generate from every usable prompt that was not collected yet, and log each finished generation.

    Args:
        pair: target, draft and the adapter in use.
        prompts: taken in order; a `SkippedPrompt` among them is counted and named.
        log: where records go; a record is on disk when `on_record` is called with it.
        settings: sampler, rule, lengths, source; whether speculation runs live or is simulated offline.
        stop: read before every prompt and after every round, or token of a batch; a generation that it cuts off is not
            logged.
        on_record: called after each record with the report so far.
        blobs: where the target's distributions go; each is on disk before the record that points there.
        on_tokens: called after every step or round with the number of tokens generated in it: records come many at a
            time, and the first ones late.

    Raises:
        ConfigError: `decoding.teacher_top_k` asks for distributions, and there are no `blobs`.
        PromptError: not one prompt was usable, and none had been collected before.
        NoRoom: a generation alone does not fit into memory.
    """
    if settings.decoding.teacher_top_k and blobs is None:
        raise ConfigError("teacher_top_k keeps distributions, but no file was given for them: pass blobs=data.blobs")
    report = CollectReport()
    stop = StopRequest() if stop is None else stop
    collector = _Collector(pair, settings, stop, on_tokens)
    encoded = collector.encoded(prompts, log, report)
    collected = collector.live(encoded) if settings.live else collector.batches(encoded)
    began = time.perf_counter()
    with pair.merged():
        for group in collected:
            for record in log.extend(group.records, blobs, group.contents):
                report.generations += 1
                report.failures += record.is_failure
                report.acceptance += realised(record.rounds, len(record.target_output))
                report.seconds = time.perf_counter() - began
                if on_record is not None:
                    on_record(report, record)
    report.interrupted = bool(stop)
    if not (report.generations or report.interrupted or report.skipped[ALREADY_COLLECTED] or settings.limit == 0):
        reasons = "; ".join(map(str, report.skipped_prompts[:3]))
        raise PromptError(f"none of {report.prompts:,} prompts was usable: {reasons}")
    return report


def generate_record(
    pair: Pair, prompt: Prompt, tokens: Sequence[int], settings: CollectSettings
) -> tuple[Record, bytes | None]:
    """Decode one prompt to its end, draft and target in turn, and record it.

    Returns:
        The record, and what the decoder kept of the target's distributions, None where that is nothing:
        `log.extend([record], blobs, [content])` logs both.
    """
    (group,) = _Collector(pair, settings, StopRequest(), _nobody).live([_EncodedPrompt(prompt, tuple(tokens))])
    (record,), (content,) = group.records, group.contents
    return record, content


@dataclass(frozen=True)
class _Finished:
    """Records to log together, and the content of each one's blob, None where it has none."""

    records: list[Record]
    contents: list[bytes | None]


@dataclass(frozen=True)
class _Collector:
    """What all generations of a run have in common."""

    pair: Pair
    settings: CollectSettings
    stop: StopRequest
    on_tokens: Callable[[int], None]

    def encoded(
        self, prompts: Iterable[Prompt | SkippedPrompt], log: FailureLog, report: CollectReport
    ) -> Iterator[_EncodedPrompt]:
        """The prompts to generate from, at most `limit` and until `stop`; the report says why others were skipped."""
        pair, settings, decoding, count = self.pair, self.settings, self.settings.decoding, 0
        known = {} if settings.fresh else log.resume_keys()
        conditions = RunConditions(
            pair=pair.identity,
            adapter=pair.adapter,
            sampler=decoding.sampler,
            run_seed=decoding.sampler.seed,
            num_draft_tokens=decoding.num_draft_tokens,
            rule=decoding.rule,
            chat_template_args=without_surrogates(dict(settings.reading.template_args)) or None,
        )

        def skip(prompt: SkippedPrompt) -> None:
            report.skipped[prompt.why.reason] += 1
            report.skipped_prompts.append(prompt)

        for number, prompt in enumerate(prompts, 1):
            if self.stop or (settings.limit is not None and count >= settings.limit):
                return  # reading takes long where a chat template does
            report.prompts += 1
            # 1. Tokens that fit the pair.
            if isinstance(prompt, SkippedPrompt):
                skip(prompt)
                continue
            tokens = usable_tokens(
                pair,
                prompt,
                decoding,
                chat_template=settings.chat_template,
                max_length=settings.max_prompt_length,
                reading=settings.reading,
            )
            if isinstance(tokens, Unusable):
                start = prompt.text[:40].strip().replace("\n", " ")
                skip(SkippedPrompt(prompt.where or Place("prompt", number), tokens, start))
                continue
            # 2. Not collected yet, or cut by a limit that was lower than this one.
            key = conditions.resume_key(tokens)
            cut = known.get(key, 0)
            if cut is None or cut >= decoding.max_tokens:
                report.skipped[ALREADY_COLLECTED] += 1
                continue
            known[key] = decoding.max_tokens
            count += 1
            yield _EncodedPrompt(prompt, tuple(tokens))

    def live(self, prompts: Iterable[_EncodedPrompt]) -> Iterator[_Finished]:
        """Each generation as the decoder makes it, draft and target in turn, one prompt after the other."""
        for encoded in prompts:
            if self.stop:
                return
            decoding = Decoding(self.pair, encoded.tokens, self._seeded(encoded.tokens))
            rounds: list[Round] = []
            for round_ in decoding:
                rounds.append(round_)
                self.on_tokens(len(round_.tokens))
                if self.stop:
                    return
            decoding.complete_bonus_draws()
            mx.clear_cache()
            assert decoding.finish is not None
            generation = Generation.of_rounds(rounds, decoding.bonus_draws, decoding.finish)
            yield self._records([(encoded, generation)])

    def batches(self, prompts: Iterable[_EncodedPrompt]) -> Iterator[_Finished]:
        """Many generations at a time: the target generates in batches, and the draft's part is simulated afterwards."""
        for encoded in batched(prompts, AT_ONCE):
            most = self.settings.decoding.max_tokens
            done: list[FinishedOutput] = []
            for output in generate_batched(
                self.pair.target,
                [OutputRequest(prompt.tokens, self._seeded(prompt.tokens).sampler, most) for prompt in encoded],
                width=self.pair.width,
                stop_tokens=self.pair.stop_tokens,
                room=room_left(budget("auto", read_device())),
                enough=lambda: bool(self.stop),
                p_bytes=P_BYTES,
                on_tokens=self.on_tokens,
            ):
                done.append(output)
                if len(done) == GROUP:
                    yield self._simulated(encoded, done)
                    done = []
            if done:
                yield self._simulated(encoded, done)
            if self.stop:
                return

    def _simulated(self, encoded: Sequence[_EncodedPrompt], outputs: list[FinishedOutput]) -> _Finished:
        """The records of finished outputs, in the order of their prompts."""
        outputs.sort(key=lambda output: output.place)
        prompts = [encoded[output.place] for output in outputs]
        generations = [
            TargetGeneration(prompt.tokens, output.tokens, self._seeded(prompt.tokens).sampler)
            for prompt, output in zip(prompts, outputs, strict=True)
        ]
        known_p = [output.p for output in outputs]
        rounds = dict(simulate_rounds(self.pair, generations, self.settings.decoding, known_p))
        return self._records([(prompt, rounds[i]) for i, prompt in enumerate(prompts)])

    def _seeded(self, tokens: Sequence[int]) -> Settings:
        """The settings of one generation, whose seed follows from the run's and the prompt."""
        sampler = self.settings.decoding.sampler
        return replace(self.settings.decoding, sampler=replace(sampler, seed=generation_seed(sampler.seed, tokens)))

    def _records(self, generations: Sequence[tuple[_EncodedPrompt, Generation]]) -> _Finished:
        """The records of generations, and what was kept of the target's distributions."""
        settings = self.settings
        records = [
            make_record(
                self.pair,
                encoded.prompt,
                encoded.tokens,
                generation,
                self._seeded(encoded.tokens),
                settings.decoding.sampler.seed,
                settings.source,
                settings.reading.template_args,
            )
            for encoded, generation in generations
        ]
        rows = [generation.rows for _, generation in generations]
        return _Finished(records, [None if one is None else encode_top_k(one) for one in rows])
