"""Every way to decode is timed here: by draftloop or by mlx-lm's public call, with so many draft tokens or none.

Every way makes text from the same prompts, models and sampler in one process, and takes turns with the others at every
prompt, so that whatever else runs here slows all alike. Seconds run from the prompt's tokens to the last piece of text:
reading the prompt counts, by the draft too where there is one, and so does turning tokens into text. Whoever compares
speeds does it within one decoder, which says what speculation gains, or at one number of draft tokens, which says what
a decoder gains over another one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import mlx.core as mx
from mlx_lm.generate import stream_generate
from mlx_lm.sample_utils import make_sampler

from ..config import Rule
from ..decoding.decoder import Decoding, DraftLength, Settings, count_rounds
from ..decoding.generation import generation_seed
from ..decoding.teacher_forced import TargetGeneration
from ..models.pair import Pair
from .estimator import Acceptance, realised

Decoder = Literal["draftloop", "mlx-lm"]
OURS: Decoder = "draftloop"
STOCK: Decoder = "mlx-lm"


@dataclass(frozen=True)
class Way:
    """A way to decode.

    Attributes:
        by: the decoder.
        rule: of acceptance; None for mlx-lm's, which has one of its own, and where nothing is drafted.
        num_draft_tokens: K; 0 decodes with the target alone, None is an adaptive draft length.
    """

    by: Decoder
    rule: Rule | None
    num_draft_tokens: int | None


class TimedPass:
    """One way over all prompts: its counts so far.

    Args:
        way: which.
        seed: of the pass; each prompt's own follows from it.
        policy: chooses K where the way does not; it goes on from output to output, as in `generate`.

    Attributes:
        way: which.
        tokens, seconds: of all outputs.
        rounds: of ours; of mlx-lm's as its tokens tell, each but a cut one ending in the target's own.
        generations, outputs: ours, and the counts of each.
    """

    def __init__(self, way: Way, seed: int, policy: DraftLength | None = None) -> None:
        self.way, self._seed, self._policy = way, seed, policy
        self.tokens = self.rounds = 0
        self.seconds = 0.0
        self.generations: list[TargetGeneration] = []
        self.outputs: list[Acceptance] = []

    def decode(self, pair: Pair, prompt: Sequence[int], settings: Settings) -> None:
        """One prompt, the adapter as it lies on the draft; `settings` has the sampler and the greatest adaptive K."""
        sampler = replace(settings.sampler, seed=generation_seed(self._seed, prompt))
        decode = self._ours if self.way.by == OURS else self._stock
        decode(pair, prompt, replace(settings, sampler=sampler))

    def _ours(self, pair: Pair, prompt: Sequence[int], how: Settings) -> None:
        length = self.way.num_draft_tokens
        count = how.num_draft_tokens if length is None else length
        how = replace(how, rule=self.way.rule or how.rule, num_draft_tokens=count, keep_bonus_draws=False)
        rounds, detokenizer = [], pair.tokenizer.detokenizer
        began = time.perf_counter()
        for round_ in Decoding(pair, prompt, how, self._policy if length is None else None):
            rounds.append(round_)
            for token in round_.tokens:
                if token not in pair.stop_tokens:
                    detokenizer.add_token(token)
            _ = detokenizer.last_segment
        detokenizer.finalize()
        self.seconds += time.perf_counter() - began
        output = tuple(token for round_ in rounds for token in round_.tokens)
        self.tokens, self.rounds = self.tokens + len(output), self.rounds + len(rounds)
        self.generations.append(TargetGeneration(tuple(prompt), output, how.sampler))
        self.outputs.append(realised(count_rounds(rounds, len(output)), len(output)))

    def _stock(self, pair: Pair, prompt: Sequence[int], how: Settings) -> None:
        """mlx-lm's speculation says of each token whether the draft proposed it."""
        sampler, speculation = how.sampler, {}
        if self.way.num_draft_tokens:
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


def take_turns(
    pair: Pair,
    prompts: Sequence[Sequence[int]],
    settings: Settings,
    ways: Sequence[Way],
    passes: int,
    policies: Mapping[Rule, DraftLength] | None = None,
    on_text: Callable[[], None] = lambda: None,
) -> dict[Way, list[TimedPass]]:
    """Decode every prompt in every way, way after way at each prompt, and all of it `passes` times.

    Args:
        pair: the models, the draft as it decodes: whoever wants the adapter merged has merged it.
        prompts: tokens of each; all leave room for `max_tokens` and the longest round.
        settings: the sampler with the run's seed, max_tokens, and as `num_draft_tokens` the greatest adaptive K.
        ways: each once.
        passes: each has a seed of its own; to warm up, run one more and leave it out.
        policies: choose K by rule, for ways that do not say it.
        on_text: called after each prompt of each way.

    Returns:
        The passes of each way.
    """
    found: dict[Way, list[TimedPass]] = {way: [] for way in ways}
    for number in range(passes):
        seed = settings.sampler.seed + number
        turn = [TimedPass(way, seed, (policies or {}).get(way.rule or settings.rule)) for way in ways]
        for prompt, one in product(prompts, turn):
            one.decode(pair, prompt, settings)
            on_text()
        for one in turn:
            found[one.way].append(one)
    return found
