"""A candidate that is worse, or no better: the gate lets it pass as rarely as it says, and a rollback is byte-exact."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import NO_SYNC, write_adapter
from fault_table import Row
from shop import Shop

from draftloop.config import Gate, Training
from draftloop.data.record_lines import to_line
from draftloop.data.records import Record
from draftloop.data_directory import DataDirectory
from draftloop.decoding.draft_length import LatencyProfile
from draftloop.evaluation.gate import decide
from draftloop.evaluation.paired_rounds import ScoredOutput
from draftloop.evaluation.sign_flip import sign_flip_test
from draftloop.evaluation.units_and_levels import alpha_of_attempt
from draftloop.registry.registry import Pointer, Registry

pytestmark = pytest.mark.row("a worse candidate")

# -- trained on noise -------------------------------------------------------------------------------------------------


def noisy(record: Record, random: np.random.Generator) -> Record:
    """A failure whose output the target never said: what is learned from it is noise."""
    if record.split != "train":
        return record
    output = tuple(int(token) for token in random.integers(1, 300, len(record.target_output)))
    draft = tuple((token + 1) % 300 for token in output)
    rounds = tuple((min(4, len(output) - i), 0) for i in range(len(output)))
    return replace(
        record,
        target_output=output,
        draft_output=draft,
        rounds=rounds,
        disagreements=tuple(
            replace(record.disagreements[0], position=i, draft_token=draft[i], target_token=output[i])
            for i in range(len(output))
        ),
    )


def with_noise(collected: Shop, root: Path, seed: int, validated: bool) -> Shop:
    shop, random = collected.copy(root), np.random.default_rng(seed)
    kept = [record for record in shop.data.log.records() if record.is_failure or record.split == "heldout"]
    lines = [to_line(noisy(record, random)) for record in kept if validated or record.split != "validation"]
    shop.data.log.path.write_bytes(b"".join(lines))
    settings = {"seed": seed, "epochs": 4, "learning_rate": 0.03, "spot_check_share": 0.0}
    training = shop.config.training.model_copy(update=settings)
    return Shop(DataDirectory(root, files=NO_SYNC), shop.config.model_copy(update={"training": training}))


@pytest.mark.parametrize("validated", [True, False], ids=["validated", "without validation"])
def test_what_was_trained_on_noise_is_never_promoted(
    tmp_path: Path, collected: Shop, validated: bool, row: Row
) -> None:
    """With validation the weights it started from are kept; without, the gate sees the noise, and that it is worse."""
    candidates, worse = row.count(1, 15), 0
    for seed in range(candidates):
        shop = with_noise(collected, tmp_path / str(seed), seed, validated)
        found = shop.retrain()
        assert (found.outcome, found.trained, found.version) == ("refused", True, "v0001")
        assert shop.data.registry.pointer() == Pointer()
        worse += not validated and found.numbers["difference"] < 0.0
    assert validated or worse >= 0.8 * candidates  # noise brings a random draft nearer now and then, and proves nothing
    row.did(candidates, "candidates trained on noise")


def test_by_default_nothing_is_trained_on_what_the_target_never_said(tmp_path: Path, collected: Shop) -> None:
    shop = with_noise(collected, tmp_path / "data", 0, validated=True)
    training = shop.config.training.model_copy(update={"spot_check_share": Training().spot_check_share})
    shop.config = shop.config.model_copy(update={"training": training})
    found = shop.retrain()
    assert (found.outcome, found.version) == ("nothing", None)
    assert "log rm --source default" in found.why


# -- no better ---------------------------------------------------------------------------------------------------------

TOKENS, ATTEMPTS = 60, 5
COSTS = LatencyProfile(t_draft=0.05, t_target=tuple(1.0 + 0.05 * k for k in range(9)))


def rounds_at(weight: float) -> tuple[float, ...]:
    """Expected rounds at K = 1 to 8 where each proposal is kept with probability `weight`."""
    return tuple(TOKENS / sum(weight**a for a in range(k + 1)) for k in range(1, 9))


def null_texts(random: np.random.Generator, champion: np.ndarray, spread: float) -> list[ScoredOutput]:
    """A candidate that differs from the champion on every prompt and is no better: each is as likely to be ahead."""
    kept = np.clip(champion + random.normal(0.0, spread, len(champion)), 0.05, 0.95)
    swapped = random.random(len(champion)) < 0.5
    pairs = [(b, a) if swap else (a, b) for a, b, swap in zip(champion, kept, swapped, strict=True)]
    return [ScoredOutput(str(i), "prose", TOKENS, rounds_at(a), rounds_at(b)) for i, (a, b) in enumerate(pairs)]


def promotes_anything(seed: int, settings: Gate) -> bool:
    """One held-out epoch of five attempts, each with a candidate of its own.

    The test comes first because it is quick: what it does not let pass is promoted by no other condition.
    """
    random = np.random.default_rng(seed)
    champion = random.uniform(0.3, 0.8, int(random.choice([12, 16, 20, 26, 50])))
    for attempt in range(1, ATTEMPTS + 1):
        texts = null_texts(random, champion, spread=random.choice([0.02, 0.1, 0.3]))
        alpha = alpha_of_attempt(attempt, settings.alpha)
        differences = [text.champion_rounds[3] - text.candidate_rounds[3] for text in texts]
        groups = [text.group for text in texts]
        if sign_flip_test(differences, groups, alpha=alpha, seed=seed).p_value > alpha:
            continue
        decision = decide(
            texts,
            num_draft_tokens=4,
            attempt=attempt,
            settings=settings,
            profile=COSTS,
            seed=seed,
        )
        if decision.outcome == "promote":
            return True
    return False


def test_of_the_epochs_in_which_no_candidate_is_better_at_most_one_in_twenty_promotes_one(row: Row) -> None:
    epochs, settings = row.count(60, 1000), Gate()
    promoting = sum(promotes_anything(seed, settings) for seed in range(epochs))
    row.did(epochs, "null epochs of five attempts")
    row.notes.append(f"{promoting} of {epochs:,} null epochs promoted something ({promoting / epochs:.1%})")
    chance = 0.0 if row.full else 3 * math.sqrt(0.05 * 0.95 * epochs)
    assert promoting <= 0.05 * epochs + chance


# -- rollback ----------------------------------------------------------------------------------------------------------


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_rollback_brings_the_champion_before_back_byte_for_byte(tmp_path: Path, row: Row) -> None:
    registry = Registry(tmp_path)
    for value in (1.0, 2.0):
        registry.create(lambda path, value=value: write_adapter(path, value), {})  # type: ignore[misc]
    registry.promote("v0001")
    good = contents(tmp_path / "v0001")
    for _ in range(row.count(3, 100)):
        registry.promote("v0002")
        began = time.perf_counter()
        registry.rollback("it is worse")
        row.times["rollback"].append(time.perf_counter() - began)
        champion = registry.resolve("champion")
        assert champion == tmp_path / "v0001"
        registry.verify(champion)
        assert contents(champion) == good
        row.did(1, "rollbacks")
