"""The worlds of the gate's benchmark are what they say: nulls are symmetric, effects true, and the shortcut exact."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import numpy as np
import pytest

TOKENS = 64.0
K_MAX = 8


@pytest.fixture
def scripts(root, monkeypatch) -> Any:
    """Imports a script of the folder `benchmarks`, which is no package, as its neighbours do."""
    monkeypatch.syspath_prepend(root / "benchmarks")
    return importlib.import_module


@pytest.fixture
def worlds(scripts) -> ModuleType:
    return scripts("gate_worlds")


def pool_of(worlds: ModuleType, prompts: int = 60) -> Any:
    """Proposals kept with a probability; two adapters gain 0.1 of it on the first source, give or take 0.02."""
    rng = np.random.default_rng(0)
    source = np.repeat([0, 1], prompts // 2)
    weight = rng.uniform(0.35, 0.65, prompts)

    def rounds(kept: np.ndarray) -> np.ndarray:
        return TOKENS / np.cumsum(kept[:, None] ** np.arange(K_MAX + 1), axis=1)[:, 1:]

    first, second = (
        weight + np.where(source == 0, 0.1, -0.01) + 0.02 * noise for noise in rng.standard_normal((2, prompts))
    )
    return worlds.Pool(source, np.full(prompts, TOKENS), rounds(weight), rounds(first), rounds(second))


def gains(attempts: list[Any], k: int = 4) -> np.ndarray:
    """Champion's rounds minus candidate's of every prompt, as a share of both's mean."""
    return np.concatenate(
        [2 * (a.champion - a.candidate)[:, k - 1] / (a.champion + a.candidate)[:, k - 1] for a in attempts]
    )


@pytest.mark.parametrize("kind", ["equal", "correlated attempts", "heavy tails", "a few long texts"])
def test_in_a_null_a_gain_is_as_likely_as_a_loss_of_the_same_size(worlds, kind) -> None:
    rng = np.random.default_rng(1)
    pool = pool_of(worlds)
    found = gains([next(iter(worlds.NULLS[kind](pool, 30, rng))) for _ in range(200)])  # 6,000 prompts
    assert abs((found > 0).mean() - (found < 0).mean()) < 4 / np.sqrt(len(found))
    tails = [np.quantile(found, share) for share in (0.1, 0.9)]
    assert tails[0] == pytest.approx(-tails[1], rel=0.1)


def test_every_world_has_five_attempts_on_one_set_of_prompts(worlds) -> None:
    for world in (worlds.NULLS | worlds.BEYOND).values():
        attempts = list(world(pool_of(worlds), 13, np.random.default_rng(2)))
        assert len(attempts) == worlds.ATTEMPTS
        assert all((attempt.tokens == attempts[0].tokens).all() for attempt in attempts)
        assert {attempt.champion.shape for attempt in attempts} == {(13, K_MAX)}


def test_no_world_leaves_what_a_draft_length_can_do(worlds) -> None:
    """From 1 to K + 1 tokens a round."""
    pool, rng = pool_of(worlds), np.random.default_rng(3)
    attempts = [a for world in (worlds.NULLS | worlds.BEYOND).values() for a in world(pool, 40, rng)]
    attempts += [worlds.better(pool, 40, "loses", effect, rng) for effect in (0.02, 0.5)]
    for attempt in attempts:
        lengths = attempt.tokens[:, None] / np.stack([attempt.champion, attempt.candidate])
        assert lengths.min() >= 1.0 - 1e-9
        assert (lengths <= np.arange(2, K_MAX + 2) + 1e-9).all()


@pytest.mark.parametrize(("kind", "one_source"), [("lopsided", False), ("lopsided, in one source", True)])
def test_the_lopsided_gain_on_nine_prompts_in_ten_and_are_no_better_on_average(worlds, kind, one_source) -> None:
    pool, rng = pool_of(worlds), np.random.default_rng(4)
    how = worlds.lopsidedness(pool, one_source=one_source)
    attempts = [attempt for _ in range(400) for attempt in worlds.BEYOND[kind](pool, 20, rng)]  # 40,000 prompts
    saved = np.concatenate([(attempt.champion - attempt.candidate)[:, worlds.K - 1] for attempt in attempts])
    assert abs(saved.mean()) < 4 * saved.std() / np.sqrt(len(saved))
    lost = np.concatenate([attempt.source for attempt in attempts])[gains(attempts) < -how.loss / 2]
    assert len(lost) / len(saved) == pytest.approx(0.1, abs=0.02)
    assert set(lost) == ({1} if one_source else {0, 1})
    assert how.loss > 8 * how.gain > 0


@pytest.mark.parametrize("second", ["none", "unchanged", "loses"])
def test_a_better_candidate_is_better_by_the_effect_on_the_first_source(worlds, second) -> None:
    pool = pool_of(worlds)
    attempt = worlds.better(pool, 40_000, second, 0.1, np.random.default_rng(5))
    for source in np.unique(attempt.source):
        rows = attempt.source == source
        tokens, champion, candidate = (
            part[rows].sum() for part in (attempt.tokens, attempt.champion[:, 3], attempt.candidate[:, 3])
        )
        wanted = 0.1 if source == 0 else worlds.true_change(pool, 1, second, 0.1)
        assert tokens / candidate - tokens / champion == pytest.approx(wanted, abs=0.005)
    assert worlds.true_change(pool, 0, second, 0.1) == pytest.approx(0.1)
    assert worlds.true_change(pool, 1, "loses", 0.1) < -0.005


def test_asking_the_gate_only_where_its_test_passes_counts_what_asking_it_always_counts(scripts, worlds) -> None:
    rates = scripts("gate_rates")
    rng = np.random.default_rng(6)
    pool, counts = pool_of(worlds), []
    for seed in range(0, 200, worlds.ATTEMPTS):
        attempts = [worlds.better(pool, 26, "unchanged", 0.03, rng) for _ in range(worlds.ATTEMPTS)]
        always = any(rates.promoted(attempt, t, seed + t) for t, attempt in enumerate(attempts, 1))
        assert rates.epoch(attempts, seed)[1] == always
        counts.append(always)
    assert 0 < sum(counts) < len(counts)


def test_a_rate_has_the_exact_binomial_interval(scripts) -> None:
    """Clopper and Pearson's for none of 100: up to 1 − 0.025^(1/100)."""
    found = scripts("gate_rates").rate(0, 100)
    assert (found.share, found.low) == (0.0, 0.0)
    assert found.high == pytest.approx(1 - 0.025**0.01)


def test_the_same_picture_is_written_as_the_same_bytes(scripts, tmp_path) -> None:
    plots = scripts("plots")

    def drawn(name: str) -> bytes:
        figure, axes = plots.panels(2)
        axes[0].errorbar([1, 2], [3, 4], [[0.1, 0.1], [0.2, 0.2]], label="gate")
        axes[0].legend()
        return plots.save(figure, name, tmp_path).read_bytes()

    assert drawn("first") == drawn("second")


def test_the_table_of_the_gate_shows_figures_nulls_and_power(scripts) -> None:
    render = scripts("render")
    rate = {"share": 0.0437, "low": 0.04, "high": 0.048}
    powers = [
        {"second": second, "prompts": 12, "effect": effect, "gate_1": rate, "gate_5": rate, "test_1": rate}
        for second in ("none", "loses")
        for effect in (0.05, 0.1)
    ]
    kinds = [{"kind": kind, "prompts": 12, "epochs": 10_000, "test": rate, "gate": rate} for kind in ("equal", "odd")]
    found = {
        "figures": [{"figure": "promoted", "value": 4.37, "at_most": 5.0, "unit": "%", "reached": True}],
        "machine": {"processor": "p", "cores": 2, "system": "s", "device": "d"},
        "versions": {"mlx": "1", "mlx-lm": "2", "python": "3"},
        "nulls": kinds[:1],
        "beyond": kinds[1:],
        "power": powers,
    }
    lines = render.gate_table(found).splitlines()
    assert "| promoted (%) | 4.370 | at most 5 | yes |" in lines
    assert "| equal | 12 | 10,000 | 4.4% (4.0 to 4.8) | 4.4% (4.0 to 4.8) |" in lines
    assert "| *odd* | 12 | 10,000 | 4.4% (4.0 to 4.8) | 4.4% (4.0 to 4.8) |" in lines
    assert "| sources | prompts |  | +0.05 | +0.1 |" in lines
    assert sum(line.startswith("| two, the second loses | 12 | ") for line in lines) == 3
