"""The script that builds the pair: its parts on small data, and the whole of it for a few steps."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest

from scripts.reference_pair import build
from scripts.reference_pair.corpus import Document
from scripts.reference_pair.openings import choose


def test_every_epoch_reads_every_row_once_and_in_another_order() -> None:
    stream = np.arange(build.CONTEXT * 9 + 1, dtype=np.uint16)
    rows = list(itertools.islice(build.rows_forever(stream, seed=0), 24))
    assert all(len(row) == build.CONTEXT + 1 for row in rows)
    assert all((np.diff(row) == 1).all() for row in rows)
    first_epoch = sorted(int(row[0]) for row in rows[:8])
    assert len(set(first_epoch)) == 8
    assert [int(row[0]) for row in rows[:8]] != [int(row[0]) for row in rows[8:16]]


def test_the_learning_rate_warms_up_and_then_only_falls() -> None:
    rates = [build.learning_rate(build.DRAFT, step) for step in range(build.DRAFT.steps)]
    peak = rates.index(max(rates))
    assert peak == build.DRAFT.warmup - 1 or peak == build.DRAFT.warmup
    assert max(rates) == pytest.approx(build.DRAFT.learning_rate)
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[peak:]))
    assert rates[-1] < 0.03 * max(rates)


def test_too_few_held_out_modules_are_refused() -> None:
    one = Document(
        "shelf", "prose", "collect", "shelf\n\n" + "Take that many things off the shelf and give them back. " * 3
    )
    with pytest.raises(ValueError, match="300 needed"):
        choose([one], "prose", "collect", seed=0)


@pytest.mark.slow
def test_the_whole_script_builds_a_pair_that_mlx_lm_loads_and_repeats_itself(tmp_path: Path) -> None:
    curves = []
    for name in ("one", "two"):
        build.main(["--out", str(tmp_path / name), "--draft-steps", "2", "--target-steps", "1"])
        facts = json.loads((tmp_path / name / "card.json").read_text())
        curves.append([[point["train_loss"] for point in facts[model]["curve"]] for model in ("draft", "target")])
        for model in ("draft", "target"):
            loaded, tokenizer = mlx_lm.load(str(tmp_path / name / model))
            assert loaded(mx.array([tokenizer.encode("def")])).shape[-1] == build.VOCABULARY
    assert curves[0] == curves[1]
