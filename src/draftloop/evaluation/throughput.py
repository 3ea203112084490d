"""The speed benchmark: tokens/s of plain decoding, of mlx-lm's own speculation, and of draftloop's at each rule and K.

Everything is timed in one process on the same prompts, dtype and sampler. The ways take turns at every prompt, so that
whatever else runs here slows all alike. Tokens alone are counted, prompt processing included. The draft's adapter is
merged for all of them, as far as it is for `generate`. mlx-lm decodes with the models as it loads them: what draftloop
does to them on a CPU is draftloop's.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import mlx.core as mx
from mlx_lm.generate import stream_generate
from mlx_lm.sample_utils import make_sampler

from ..config import SAMPLING, Rule
from ..decoding.decoder import Decoding, Settings
from ..decoding.draft_length import AdaptiveDraftLength, Experience, LatencyProfile
from ..decoding.generation import generation_seed
from ..decoding.teacher_forced import TargetGeneration
from ..models import adapter as lora
from ..models.pair import Pair
from . import latency as costs
from .benchmark import accepted
from .estimator import forecast, total
from .latency_profiles import Advice
from .scoring import score_carried

PLAIN, STOCK, OURS = "plain", "mlx-lm", "draftloop"


@dataclass(frozen=True)
class Way:
    """A way to decode: `rule` is None for plain decoding and mlx-lm's; K is 0 for plain, None for adaptive."""

    by: str
    rule: Rule | None
    num_draft_tokens: int | None


@dataclass(frozen=True)
class SpeedRow:
    """One way over all prompts.

    Attributes:
        way: which.
        tokens: emitted in all passes over the prompts that count; each has a seed of its own.
        length: acceptance length; None where the rounds are not known.
        passes: tokens per second of each.
        tokens_per_second: median of the passes.
        spread: half the range of the middle half of them, over the median.
        speed_up: median over the passes of tokens per second over those of plain decoding in the same pass.
        forecast: of the speed-up, from the latency profile and the estimated length; None where there is none.
    """

    way: Way
    tokens: int
    length: float | None
    passes: tuple[float, ...]
    tokens_per_second: float
    spread: float
    speed_up: float
    forecast: float | None


@dataclass(frozen=True)
class SpeedReport:
    """Measurements and the advice that follows; `experience` of each rule is of its row with adaptive draft length."""

    rows: list[SpeedRow]
    costs: LatencyProfile
    advice: Advice
    experience: dict[Rule, Experience]


def measure_speed(
    pair: Pair,
    stock: Pair,
    prompts: Sequence[Sequence[int]],
    settings: Settings,
    rules: Sequence[Rule],
    lengths: Sequence[int],
    stock_lengths: Sequence[int],
    repeats: int,
    on_text: Callable[[], None] = lambda: None,
    on_timed: Callable[[int, int], None] = lambda _done, _of: None,
) -> SpeedReport:
    """Time every way.

    Args:
        pair: the models, the draft with the adapter in use.
        stock: the same as mlx-lm loads them; where draftloop changes nothing in them, `pair` itself.
        prompts: tokens of each; all leave room for `max_tokens` and the longest round.
        settings: the sampler with the run's seed, max_tokens, and as `num_draft_tokens` the greatest adaptive K.
        rules: that fit the temperature.
        lengths: K >= 1.
        stock_lengths: K of mlx-lm's speculation.
        repeats: passes over the prompts that count; one before them does not.
        on_text: called after each prompt of each way.
        on_timed: before that, of the latency profile; as `latency.measure_latency` says.
    """
    most = max(*lengths, settings.num_draft_tokens)
    with lora.merged(pair.draft), lora.merged(stock.draft, as_stock=True):
        measured = costs.measure_latency(pair, most, costs.CAREFUL, on_timed)
        ways = [Way(PLAIN, None, 0), *(Way(STOCK, None, k) for k in stock_lengths)]
        ways += [Way(OURS, rule, k) for rule, k in product(rules, lengths)]
        ways += [Way(OURS, rule, None) for rule in rules]
        # One for all outputs of a rule: each goes on from the experience of those before it, as in `generate`.
        policies = {rule: AdaptiveDraftLength(measured, settings.num_draft_tokens) for rule in rules}
        passes: dict[Way, list[_Pass]] = {way: [] for way in ways}
        for number in range(repeats + 1):
            turn = [_Pass(way, policies, settings.sampler.seed + number) for way in ways]
            for prompt, one in product(prompts, turn):
                one.decode(pair if one.way.by == OURS else stock, prompt, settings)
                on_text()
            for way, one in zip(ways, turn, strict=True):
                passes[way].append(one)
        generations = passes[Way(OURS, rules[0], lengths[0])][0].generations
        scores = {rule: score_carried(pair, generations, rule) for rule in rules}
    plain = [one.tokens / one.seconds for one in passes[ways[0]][1:]]
    rows = []
    for way, counted in passes.items():
        promised = None  # the speed-up that the latency profile and the estimated acceptance promise
        if way.by == OURS and way.rule is not None and (k := way.num_draft_tokens) is not None:
            length = total(accepted(one, way.rule, k) for one in scores[way.rule]).acceptance_length
            promised = forecast(length, measured.t_draft, measured.t_target[0], measured.t_target[k], k)
        rows.append(_row(way, counted[1:], plain, promised))
    experience = {rule: policy.experience for rule, policy in policies.items()}

    # The fastest fixed K of ours; 0 where plain decoding is faster.
    fixed = [row for row in rows if row.way.by == OURS and row.way.num_draft_tokens is not None]
    best = max(fixed, key=lambda row: row.speed_up)
    rule = best.way.rule if best.way.rule in SAMPLING else None
    is_faster = best.speed_up >= 1.0
    advice = Advice((best.way.num_draft_tokens or 0) if is_faster else 0, rule, best.speed_up if is_faster else 1.0)
    return SpeedReport(rows, measured, advice, experience)


class _Pass:
    """One way over all prompts: its counts so far.

    Attributes:
        way: which.
        tokens, seconds: of all outputs.
        rounds: of ours; of mlx-lm's as its tokens tell, each but a cut one ending in the target's own.
        generations: ours.
    """

    def __init__(self, way: Way, policies: Mapping[Rule, AdaptiveDraftLength], seed: int) -> None:
        self.tokens = self.rounds = 0
        self.seconds = 0.0
        self.generations: list[TargetGeneration] = []
        self.way, self._policies, self._seed = way, policies, seed

    def decode(self, pair: Pair, prompt: Sequence[int], settings: Settings) -> None:
        """One prompt."""
        sampler = replace(settings.sampler, seed=generation_seed(self._seed, prompt))
        decode = self._ours if self.way.by == OURS else self._stock
        decode(pair, prompt, replace(settings, sampler=sampler))

    def _ours(self, pair: Pair, prompt: Sequence[int], how: Settings) -> None:
        rule, length = self.way.rule or how.rule, self.way.num_draft_tokens
        policy = self._policies[rule] if length is None else None
        how = replace(how, rule=rule, num_draft_tokens=length or how.num_draft_tokens, keep_bonus_draws=False)
        began = time.perf_counter()
        rounds = list(Decoding(pair, prompt, how, policy))
        self.seconds += time.perf_counter() - began
        output = tuple(token for round_ in rounds for token in round_.tokens)
        self.tokens, self.rounds = self.tokens + len(output), self.rounds + len(rounds)
        self.generations.append(TargetGeneration(tuple(prompt), output, how.sampler))

    def _stock(self, pair: Pair, prompt: Sequence[int], how: Settings) -> None:
        """mlx-lm's public call; its speculation says of each token whether the draft proposed it."""
        sampler, speculation = how.sampler, {}
        if self.way.by == STOCK:
            speculation = {"draft_model": pair.draft, "num_draft_tokens": self.way.num_draft_tokens}
        draw = make_sampler(sampler.temperature, sampler.top_p, sampler.min_p, top_k=sampler.top_k)
        mx.random.seed(sampler.seed % (1 << 32))
        began = time.perf_counter()
        for response in stream_generate(
            pair.target, pair.tokenizer, list(prompt), max_tokens=how.max_tokens, sampler=draw, **speculation
        ):
            self.tokens += 1
            self.rounds += not response.from_draft
        self.seconds += time.perf_counter() - began
        self.rounds += response.from_draft  # a round that the end cut has no token of the target's own


def _row(way: Way, passes: Sequence[_Pass], plain: Sequence[float], forecasted: float | None) -> SpeedRow:
    speeds = [one.tokens / one.seconds for one in passes]
    median = statistics.median(speeds)
    low, _, high = statistics.quantiles(speeds, n=4) if len(speeds) > 1 else (median, median, median)
    tokens, rounds = (sum(values) for values in zip(*((one.tokens, one.rounds) for one in passes), strict=True))
    return SpeedRow(
        way=way,
        tokens=tokens,
        length=tokens / rounds if rounds else None,
        passes=tuple(speeds),
        tokens_per_second=median,
        spread=(high - low) / 2 / median,
        speed_up=statistics.median(speed / bare for speed, bare in zip(speeds, plain, strict=True)),
        forecast=forecasted,
    )
