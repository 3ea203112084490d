"""What a draft may propose is chosen once, with a trained version, by what pays on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from shop import LATER, PROMPTS, Shop

from draftloop.config import Models
from draftloop.data_directory import DataDirectory
from draftloop.decoding.draft_length import LatencyProfile
from draftloop.evaluation.draft_trials import DraftTrial
from draftloop.evaluation.gate_target import LoadedTarget
from draftloop.models.draft_vocabulary import DraftVocabulary
from draftloop.models.pair import Pair, load_pair
from draftloop.retraining import vocabulary_choice
from draftloop.retraining.vocabulary_choice import (
    LEAST_MEASURED,
    choose_vocabulary,
    measured_generations,
    settle_vocabulary,
    vocabularies_to_try,
)
from draftloop.training.train import train


def head_costs(pair: Pair, most: int) -> LatencyProfile:
    """A machine on which a draft's step is its head."""
    size = pair.width if pair.vocabulary is None or pair.vocabulary.is_whole else len(pair.vocabulary.tokens)
    return LatencyProfile(0.004 * size / pair.width, tuple(0.01 + 0.0001 * k for k in range(most + 1)))


TARGET = LoadedTarget(head_costs)


@pytest.fixture(scope="module")
def grown(collected: Shop, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """The collected generations, and a version."""
    shop = collected.copy(tmp_path_factory.mktemp("grown") / "data")
    train(load_pair(shop.config.models, names=shop.data.names), shop.data, shop.config, quiet=True)
    return shop


@pytest.fixture
def trained(grown: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """A data directory of one's own with a version, and a vocabulary that counts as large."""
    monkeypatch.setattr(vocabulary_choice, "LEAST_WIDTH", 1)
    monkeypatch.setattr(vocabulary_choice, "MOST_MEMORY", 1.0)
    return grown.copy(tmp_path / "data")


def pair_of(shop: Shop) -> Pair:
    pair = load_pair(shop.config.models, names=shop.data.names)
    return pair.with_adapter(shop.data.registry.root / "v0001")


def test_what_pays_is_chosen_once_and_kept(trained: Shop) -> None:
    said: list[str] = []
    found = settle_vocabulary(pair_of(trained), trained.data, trained.config, said.append, TARGET)
    assert found.vocabulary is not None
    assert not found.vocabulary.is_whole
    trials = found.vocabulary.trials
    assert [trial.size for trial in trials] == [found.width, *(found.width // n for n in (2, 4, 8, 16))]
    assert len(found.vocabulary.tokens) == max(trials, key=lambda trial: trial.forecast).size
    assert trials[-1].acceptance < trials[0].acceptance
    assert said[-1] == found.vocabulary.why
    # 2. From now on every command has it, with any version, and it is not chosen again.
    again = pair_of(trained)
    assert again.vocabulary == load_pair(trained.config.models, names=trained.data.names).vocabulary == found.vocabulary
    assert settle_vocabulary(again, trained.data, trained.config, said.append) is again


def test_from_then_on_nothing_else_is_proposed_and_what_was_rejected_is_logged(trained: Shop) -> None:
    chosen = settle_vocabulary(pair_of(trained), trained.data, trained.config, target=TARGET).vocabulary
    assert chosen is not None
    trained.data.registry.promote("v0001")
    before = {record.id for record in trained.data.log.records()}
    trained.collect(LATER[:30])
    records = [record for record in trained.data.log.records() if record.id not in before]
    proposed = {one.draft_token for record in records for one in record.disagreements}
    emitted = {token for record in records for token in record.target_output}
    assert len(records) == 30
    assert proposed <= set(chosen.tokens)
    assert not emitted <= set(chosen.tokens)
    assert any(value is None for record in records for value in record.log_q)  # where q has no mass


def test_it_is_the_most_used_tokens_of_what_is_trained_on_and_what_ends_an_output(trained: Shop) -> None:
    pair = pair_of(trained)
    smallest = vocabularies_to_try(pair, trained.data, set())[-1]
    emitted = {token for record in trained.data.log.records({"train"}) for token in record.target_output}
    assert pair.stop_tokens <= set(smallest.tokens) <= emitted | pair.stop_tokens
    others = [record.id for record in trained.data.log.records({"train"})]
    assert set(vocabularies_to_try(pair, trained.data, others)[-1].tokens) != set(smallest.tokens)


def test_all_is_nothing_to_choose(trained: Shop) -> None:
    pair = pair_of(trained)
    settle_vocabulary(pair, trained.data, trained.config, target=TARGET)
    models = trained.config.models.model_copy(update={"draft_vocabulary": "all"})
    config = trained.config.model_copy(update={"models": models})
    bare = load_pair(models, names=trained.data.names)
    assert bare.vocabulary is None
    assert settle_vocabulary(bare, trained.data, config, target=TARGET) is bare


def test_a_small_vocabulary_and_a_large_copy_are_not_tried(trained: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = pair_of(trained)
    monkeypatch.setattr(vocabulary_choice, "LEAST_WIDTH", pair.width + 1)
    assert vocabularies_to_try(pair, trained.data, set()) == []
    monkeypatch.setattr(vocabulary_choice, "LEAST_WIDTH", 1)
    monkeypatch.setattr(vocabulary_choice, "MOST_MEMORY", 1e-6)
    assert vocabularies_to_try(pair, trained.data, set()) == []
    assert settle_vocabulary(pair, trained.data, trained.config, target=TARGET) is pair


def test_too_few_generations_choose_nothing(small_models: Models, tmp_path: Path, trained: Shop) -> None:
    few = Shop(DataDirectory(tmp_path / "few"), trained.config)
    few.collect(PROMPTS[:20])
    pair = load_pair(small_models, names=few.data.names)
    assert len(measured_generations(pair, few.data)) < LEAST_MEASURED
    assert settle_vocabulary(pair, few.data, few.config, target=TARGET) is pair


def test_all_tokens_win_between_equals() -> None:
    half = DraftVocabulary((1, 2), "lm_head", "a trial")
    trials = [DraftTrial(None, 0.001, 0.5, 2, 1.1), DraftTrial(half, 0.001, 0.4, 2, 1.1)]
    chosen = choose_vocabulary(trials, "lm_head", 4)
    assert chosen.is_whole
    assert chosen.why.startswith("all tokens of 4 have the highest forecast (4: 0.500 accepted per position, 1.10x")


def test_the_gate_chooses_before_it_compares(trained: Shop) -> None:
    found = trained.retrain(target=TARGET)
    assert found.outcome in ("promoted", "refused")
    kept = load_pair(trained.config.models, names=trained.data.names).vocabulary
    assert kept is not None
    assert len(kept.trials) == 5
