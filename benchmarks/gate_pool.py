"""The pool of real scores that `gate_worlds` draws on: two adapters trained alike, measured on the same texts.

They differ in the seed alone, of the texts that they learned from and of the training. A file can keep the scores.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
from gate_worlds import FloatArray, Pool

from draftloop import reference
from draftloop.cli.progress import Steps
from draftloop.config import Gate, Training
from draftloop.decoding.generate import decoding_settings
from draftloop.demo import LoopSettings, loop_config, run_loop
from draftloop.evaluation.benchmark import Sample, accepted
from draftloop.evaluation.live_decoding import samples_from_prompts
from draftloop.evaluation.scoring import score
from draftloop.models.pair import Pair
from draftloop.prompts.files import read_prompts

DRAFT_LENGTHS = range(1, Gate().max_draft_tokens + 1)


@dataclass(frozen=True)
class PoolSettings:
    """The loop that trains each adapter, and how many benchmark prompts of each domain are scored."""

    loop: LoopSettings
    texts: int
    training_epochs: int | Literal["auto"] = Training().epochs


def kept_pool(file: Path | None, settings: PoolSettings, seed: int, steps: Steps) -> Pool:
    """The pool from a file, or measured and then kept there; without a file it is measured.

    Raises:
        SystemExit: the file holds a pool of other settings or of another seed.
    """
    made_with = json.dumps(asdict(settings) | {"seed": seed}, sort_keys=True)
    if file is not None and file.exists():
        with np.load(file) as kept:
            if str(kept["made_with"]) != made_with:
                raise SystemExit(f"{file} was made with {kept['made_with']}, expected {made_with}: name another file")
            return Pool(**{field.name: kept[field.name] for field in fields(Pool)})
    pool = measured_pool(settings, seed, steps)
    if file is not None:
        np.savez(file, made_with=made_with, **{field.name: getattr(pool, field.name) for field in fields(Pool)})
    return pool


def measured_pool(settings: PoolSettings, seed: int, steps: Steps) -> Pool:
    """Train the two adapters, and score both and the bare draft on the same texts of both domains."""
    first_seed, second_seed, text_seed = range(3 * seed + 1, 3 * seed + 4)
    with tempfile.TemporaryDirectory(prefix="draftloop-gate-") as folder:
        pair, first = trained(settings, first_seed, Path(folder) / "first", steps)
        _, second = trained(settings, second_seed, Path(folder) / "second", steps)
        scored = [
            rounds_of(pair, sampled(pair, domain, settings, text_seed, steps), {"base": None, "a": first, "b": second})
            for domain in reference.DOMAINS
        ]
    source = np.repeat(np.arange(len(scored)), [len(columns["tokens"]) for columns in scored])
    joined = {name: np.concatenate([columns[name] for columns in scored]) for name in scored[0]}
    return Pool(source, joined["tokens"], joined["base"], joined["a"], joined["b"])


def trained(settings: PoolSettings, seed: int, folder: Path, steps: Steps) -> tuple[Pair, Path]:
    """One turn of the loop; the pair, and the directory of the adapter."""
    loop_settings = replace(settings.loop, seed=seed)
    config = loop_config(loop_settings, Training(seed=seed, epochs=settings.training_epochs))
    pair, loop = run_loop(loop_settings, config, folder, steps.at)
    return pair, folder / "adapters" / loop.trained.version


def sampled(pair: Pair, domain: reference.Domain, settings: PoolSettings, seed: int, steps: Steps) -> list[Sample]:
    """What the target makes of benchmark prompts of one domain."""
    decoding = decoding_settings(loop_config(replace(settings.loop, seed=seed)).speculative)
    prompts = read_prompts(reference.prompts_file(domain, "benchmark"))[: settings.texts]
    done: list[int] = []

    def count(tokens: int) -> None:
        done.append(tokens)
        steps.at(f"generating {domain} to score", len(done), len(prompts))

    samples, _ = samples_from_prompts(
        pair.with_adapter(None), prompts, decoding, chat_template=True, max_prompt_length=1 << 20, on_text=count
    )
    return samples


def rounds_of(pair: Pair, samples: list[Sample], drafts: dict[str, Path | None]) -> dict[str, FloatArray]:
    """Tokens (n,), and by draft the expected rounds (n, K) at every K that the gate looks at."""
    found = score(pair, [sample.generation for sample in samples], "rejection", drafts)
    rounds = {
        name: np.array([[accepted(text, "rejection", k).rounds for k in DRAFT_LENGTHS] for text in column])
        for name, column in found.items()
    }
    return {"tokens": np.array([float(len(sample.generation.output)) for sample in samples]), **rounds}
