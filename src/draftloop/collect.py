"""From prompts to records: decode each with draft and target side by side, log what was proposed and what was emitted.

Every generation has a seed of its own, derived from the run's seed and the prompt, so the order of prompts, a resumed
run or a skipped prompt changes nothing in the others.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import Any

import mlx.core as mx

from .acceptance import Acceptance, realised
from .distributions import TopK, joined
from .distributions import encode as encode_distributions
from .errors import ConfigError, PromptError
from .interrupt import StopRequest
from .pair import Pair
from .prompts import Prompt, Unusable, encode
from .records import Disagreement, Record, RunConditions
from .speculative.decoder import Decoding, Draw, Round, Settings, check_length, count_rounds
from .store.blobs import BlobFile
from .store.log import FailureLog

ALREADY_COLLECTED = "already collected"


@dataclass(frozen=True)
class CollectSettings:
    """One collecting run. `decoding.sampler.seed` is the run's seed."""

    decoding: Settings
    source: str = "default"
    chat_template: bool = True
    max_prompt_length: int = 2048
    fresh: bool = False  # collect again what was collected under the same conditions
    limit: int | None = None  # most new generations


@dataclass
class CollectReport:
    """What a run did. `skipped` counts by reason, `skipped_prompts` names each."""

    prompts: int = 0
    generations: int = 0
    failures: int = 0
    acceptance: Acceptance = field(default_factory=lambda: Acceptance(0, 0, 0, 0))
    seconds: float = 0.0
    skipped: Counter[str] = field(default_factory=Counter)
    skipped_prompts: list[str] = field(default_factory=list)
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
            "skipped_prompts": self.skipped_prompts,
            "tokens_per_second": self.tokens_per_second,
            "seconds": self.seconds,
            "interrupted": self.interrupted,
        }


def generation_seed(run_seed: int, prompt_tokens: Iterable[int]) -> int:
    """The seed of one generation, 0 .. 2**63 - 1: a hash of the run's seed and the prompt."""
    text = f"{run_seed}:{','.join(map(str, prompt_tokens))}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def collect_data(
    pair: Pair,
    prompts: Sequence[Prompt],
    log: FailureLog,
    settings: CollectSettings,
    stop: StopRequest | None = None,
    on_record: Callable[[CollectReport, Record], None] | None = None,
    blobs: BlobFile | None = None,
) -> CollectReport:
    """Generate from every usable prompt that was not collected yet, and log each finished generation.

    Args:
        pair: target, draft and the adapter in use.
        prompts: in order.
        log: where records go; each is on disk before the next generation begins.
        settings: sampler, rule, lengths, source.
        stop: looked at after every round; a generation that is cut by it is not logged.
        on_record: called after each record with the report so far.
        blobs: where the target's distributions go; each is on disk before the record that points there.

    Raises:
        ConfigError: `decoding.teacher_top_k` asks for distributions, and there are no `blobs`.
        PromptError: not one prompt was usable, and none had been collected before.
    """
    if settings.decoding.teacher_top_k and blobs is None:
        raise ConfigError("teacher_top_k keeps distributions, but no file was given for them: pass blobs=data.blobs")
    report = CollectReport(prompts=len(prompts))
    known = set() if settings.fresh else log.resume_keys()
    conditions = _conditions(pair, settings.decoding)
    for number, prompt in enumerate(prompts, 1):
        if stop or (settings.limit is not None and report.generations >= settings.limit):
            break
        ids = usable_ids(
            pair,
            prompt,
            settings.decoding,
            chat_template=settings.chat_template,
            max_length=settings.max_prompt_length,
        )
        if isinstance(ids, Unusable):
            _skip(report, ids, number, prompt)
            continue
        key = conditions.resume_key(ids)
        if key in known:
            report.skipped[ALREADY_COLLECTED] += 1
            continue
        began = time.perf_counter()
        record = generate_record(pair, prompt.text, ids, settings, stop, blobs)
        if record is None:
            break
        record = log.append(record)
        known.add(key)
        report.seconds += time.perf_counter() - began
        report.generations += 1
        report.failures += record.is_failure
        report.acceptance += realised(record.rounds, len(record.target_output))
        if on_record is not None:
            on_record(report, record)
    report.interrupted = bool(stop)
    if not (report.generations or report.interrupted or report.skipped[ALREADY_COLLECTED] or settings.limit == 0):
        reasons = "; ".join(report.skipped_prompts[:3])
        raise PromptError(f"none of {len(prompts)} prompts was usable: {reasons}")
    return report


def generate_record(
    pair: Pair,
    text: str,
    ids: Sequence[int],
    settings: CollectSettings,
    stop: StopRequest | None = None,
    blobs: BlobFile | None = None,
) -> Record | None:
    """Decode one prompt to its end and say all of it as a record; None when `stop` came first.

    What the decoder kept of the target's distributions is in `blobs` by then.
    """
    run_seed = settings.decoding.sampler.seed
    sampler = replace(settings.decoding.sampler, seed=generation_seed(run_seed, ids))
    decoding = Decoding(pair, ids, replace(settings.decoding, sampler=sampler))
    rounds: list[Round] = []
    for found in decoding:
        rounds.append(found)
        if stop:
            return None
    decoding.settle()
    mx.clear_cache()
    record = _record(pair, text, ids, settings, decoding, rounds)
    kept = None if blobs is None else _kept(rounds)
    if blobs is None or kept is None:
        return record
    return replace(record, teacher=blobs.append(encode_distributions(kept)))


def _kept(rounds: Sequence[Round]) -> TopK | None:
    """The target's distributions along a text; None where the decoder kept none.

    Those past a rejection are left out: the text went on without what was proposed there (docs/decisions: learning).
    """
    rows = [found.target_rows[: len(found.tokens)] for found in rounds if found.target_rows is not None]
    return joined(rows) if rows else None


def _record(
    pair: Pair, text: str, ids: Sequence[int], settings: CollectSettings, decoding: Decoding, rounds: list[Round]
) -> Record:
    draft_output: list[int] = []
    log_p: list[float | None] = []
    log_q: list[float | None] = []
    for found in rounds:
        for draw in found.draws:
            draft_output.append(draw.draft_token)
            log_p.append(_mass(draw.token_log_p))
            log_q.append(_mass(draw.token_log_q))
        if found.bonus_log_p is not None:
            bonus = decoding.bonus_draws[found.start + len(found.draws)]
            draft_output.append(bonus.draft_token)
            log_p.append(_mass(found.bonus_log_p))
            log_q.append(_mass(bonus.token_log_q))
    output = [token for found in rounds for token in found.tokens]
    assert decoding.finish is not None
    return Record(
        id=_content_id(pair, ids, output, decoding.settings, settings.source),
        prompt=text,
        prompt_tokens=tuple(ids),
        draft_output=tuple(draft_output),
        target_output=tuple(output),
        disagreements=tuple(_disagreements(rounds)),
        sampler=decoding.settings.sampler,
        rule=settings.decoding.rule,
        num_draft_tokens=settings.decoding.num_draft_tokens,
        rounds=count_rounds(rounds, len(output)),
        log_p=tuple(log_p),
        log_q=tuple(log_q),
        finish=decoding.finish,
        pair=pair.identity,
        adapter=pair.adapter,
        split="train",  # the log decides
        source=settings.source,
        time=time.time(),
        run_seed=settings.decoding.sampler.seed,
    )


def _content_id(pair: Pair, ids: Sequence[int], output: Sequence[int], decoding: Settings, source: str) -> str:
    """32 hex digits that say what was generated: the same run has the same ids, so what draws by id repeats too."""
    # What is kept beside a text says nothing of the text, so teacher_top_k is no part of this.
    how = (astuple(decoding.sampler), decoding.rule, decoding.num_draft_tokens)
    lengths = decoding.max_tokens, decoding.prefill_step_size
    said = [list(ids), list(output), (*how, *lengths), astuple(pair.identity), pair.adapter, source]
    return hashlib.sha256(repr(said).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _disagreements(rounds: Iterable[Round]) -> Iterable[Disagreement]:
    for found in rounds:
        for offset, draw in enumerate(found.draws):
            if offset >= found.accepted:
                yield _disagreement(found.start + offset, draw)


def _disagreement(position: int, draw: Draw) -> Disagreement:
    return Disagreement(
        position=position,
        draft_token=draw.draft_token,
        target_token=draw.token,
        draft_logp=_mass(draw.draft_log_p),
        draft_logq=_mass(draw.draft_log_q),
        target_logp=_mass(draw.token_log_p),
        target_logq=_mass(draw.token_log_q),
    )


def _mass(log_probability: float) -> float | None:
    """A log-probability as a record keeps it: None where there is no mass."""
    return None if log_probability == -math.inf else log_probability


def _conditions(pair: Pair, decoding: Settings) -> RunConditions:
    return RunConditions(
        pair=pair.identity,
        adapter=pair.adapter,
        sampler=decoding.sampler,
        run_seed=decoding.sampler.seed,
        num_draft_tokens=decoding.num_draft_tokens,
        rule=decoding.rule,
    )


def usable_ids(
    pair: Pair, prompt: Prompt, decoding: Settings, *, chat_template: bool, max_length: int
) -> list[int] | Unusable:
    """The ids of a prompt that fits the pair, or why it does not."""
    ids = encode(prompt, pair.tokenizer, chat_template=chat_template, max_length=max_length)
    if isinstance(ids, list):
        beyond = next((i for i in ids if i >= pair.width), None)
        if beyond is not None:  # a token that the tokenizer has and a model has no row for
            return Unusable("unknown token", f"target and draft share ids up to {pair.width - 1:,}, found {beyond:,}")
        try:
            check_length(pair, len(ids), decoding)
        except PromptError as error:
            return Unusable("too long", str(error))
    return ids


def _skip(report: CollectReport, why: Unusable, number: int, prompt: Prompt) -> None:
    report.skipped[why.reason] += 1
    start = prompt.text[:40].strip().replace("\n", " ")
    report.skipped_prompts.append(f"prompt {number} ({start!r}): {why.reason}, {why.detail}")
