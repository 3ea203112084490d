"""Collecting and estimating against what one would do otherwise: python benchmarks/speed_collecting.py

Collecting: records of many prompts, distributions and all, against generating with the target and then with the draft,
as mlx-lm does it. Estimating: acceptance at K = 1 to 8 from one scoring, against decoding the same prompts at each K.
"""

from __future__ import annotations

import prepared  # noqa: F401

# isort: split
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import results
import speed_world
from mlx_lm.generate import stream_generate
from mlx_lm.sample_utils import make_sampler
from results import Figure
from speed_world import Timed, ratios, take_turns

from draftloop import reference
from draftloop.cli.tables import print_table
from draftloop.collection.collect import CollectSettings, collect_data
from draftloop.config import Data, Speculative
from draftloop.data_directory import DataDirectory
from draftloop.decoding.decoder import Settings
from draftloop.decoding.generate import decoding_settings
from draftloop.decoding.teacher_forced import TargetGeneration
from draftloop.evaluation.benchmark import accepted
from draftloop.evaluation.estimator import total
from draftloop.evaluation.live_decoding import decode_all
from draftloop.evaluation.scoring import score_carried
from draftloop.models.pair import Pair
from draftloop.prompts.files import read_prompts
from draftloop.prompts.prompt import Prompt

TOKENS = 96
LENGTHS = range(1, 9)
OURS, OTHERS, LIVE_LOOP = "draftloop, in batches", "mlx-lm, target and then draft", "draftloop, --live"
SCORED, DECODED = "scored once", "decoded at each K"


@dataclass(frozen=True)
class Size:
    """Turns that count, and how many prompts each way takes in one."""

    repeats: int
    collected: int
    one_by_one: int
    live: int
    estimated: int
    decoded: int


FULL, QUICK = Size(3, 128, 12, 12, 48, 4), Size(1, 8, 2, 2, 4, 1)


def main() -> None:
    given = speed_world.options(__doc__).parse_args()
    size = QUICK if given.quick else FULL
    pair = speed_world.trained_pair(given.adapter, given.quick)
    settings = decoding_settings(Speculative(max_tokens=TOKENS))
    rows, figures = [], []
    collecting, estimating = [], []
    for domain in reference.DOMAINS:
        prompts = read_prompts(reference.prompts_file(domain, "benchmark"))
        found = take_turns(
            {
                OTHERS: partial(one_after_the_other, pair, prompts[: size.one_by_one], settings),
                LIVE_LOOP: partial(collect, pair, prompts[: size.live], settings, live=True),
                OURS: partial(collect, pair, prompts[: size.collected], settings, live=False),
            },
            size.repeats,
        )
        collecting.append(ratios(found, OURS, OTHERS).median)
        texts = decode_all(pair, speed_world.prompt_ids(pair, domain, size.estimated), settings).generations
        estimated = take_turns(
            {
                DECODED: partial(decode_at_each, pair, texts[: size.decoded], settings),
                SCORED: partial(estimate, pair, texts, settings),
            },
            size.repeats,
        )
        estimating.append(ratios(estimated, SCORED, DECODED).median)
        for name, speeds in {**found, **estimated}.items():
            timed = Timed.of(speeds)
            unit = "texts/s" if name in estimated else "tokens/s"
            rows.append({"domain": domain, "way": name, "speed": timed.median, "unit": unit, "spread": timed.spread})
    figures = [
        Figure("collecting, over target and draft one after the other", min(collecting), "x tokens/s", at_least=8.0),
        Figure("acceptance at K = 1 to 8, over decoding at each", min(estimating), "x", at_least=20.0),
    ]
    print_table(list(rows[0]), [[f"{v:.3g}" if isinstance(v, float) else v for v in row.values()] for row in rows])
    print_table(["figure", "measured", "at least"], [[f.figure, f"{f.value:.2f}", f.at_least] for f in figures])
    if not given.quick:
        conditions = {
            "pair": "embedded",
            "adapter": speed_world.described(given.adapter),
            "temperature": settings.sampler.temperature,
            "max_tokens": TOKENS,
            "size": asdict(size),
        }
        results.write("speed_collecting", conditions, figures, rows=rows)


def one_after_the_other(pair: Pair, prompts: Sequence[Prompt], settings: Settings) -> float:
    """Tokens a second of texts that the target writes, and the draft after it."""
    draw = make_sampler(settings.sampler.temperature, top_p=settings.sampler.top_p)
    tokens, began = 0, time.perf_counter()
    with pair.merged():
        for ids in speed_world.ids_of(pair, prompts):
            for model in (pair.target, pair.draft):
                made = stream_generate(model, pair.tokenizer, list(ids), max_tokens=settings.max_tokens, sampler=draw)
                written = sum(1 for _ in made)
                tokens += written if model is pair.target else 0
    return tokens / (time.perf_counter() - began)


def collect(pair: Pair, prompts: Sequence[Prompt], settings: Settings, *, live: bool) -> float:
    """Tokens a second of records on disk, with as much of the target's distributions as by default."""
    with tempfile.TemporaryDirectory() as folder:
        data = DataDirectory(Path(folder), Data())
        how = CollectSettings(replace(settings, teacher_top_k=Data().teacher_top_k), live=live)
        began = time.perf_counter()
        report = collect_data(pair, prompts, data.log, how, blobs=data.blobs)
        return report.acceptance.tokens / (time.perf_counter() - began)


def decode_at_each(pair: Pair, texts: Sequence[TargetGeneration], settings: Settings) -> float:
    """Texts a second, each decoded once at every K."""
    prompts = [text.prompt_tokens for text in texts]
    began = time.perf_counter()
    for k in LENGTHS:
        decode_all(pair, prompts, replace(settings, num_draft_tokens=k))
    return len(prompts) / (time.perf_counter() - began)


def estimate(pair: Pair, texts: Sequence[TargetGeneration], settings: Settings) -> float:
    """Texts a second, each estimated at every K."""
    began = time.perf_counter()
    scores = score_carried(pair, texts, settings.rule)
    for k in LENGTHS:
        total(accepted(one, settings.rule, k) for one in scores)
    return len(texts) / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
