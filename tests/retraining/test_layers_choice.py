"""The number of layers of a self-draft is chosen once, by what short trainings of a few numbers give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from model_dirs import write_llama
from shop import PROMPTS, Shop, config_of, fixed_costs
from stops import StopAfter

from draftloop.config import Config, Models, Training
from draftloop.data_directory import DataDirectory
from draftloop.errors import Interrupted, NothingToDo, TrainingFailed
from draftloop.evaluation.gate_target import LoadedTarget
from draftloop.models import adapter as lora
from draftloop.models.pair import Pair, load_pair
from draftloop.models.self_layers import LayersTrial
from draftloop.retraining import layers_choice
from draftloop.retraining.layers_choice import choose, numbers_to_try, settle_layers, without_trials
from draftloop.retraining.run import Beside

TARGET = LoadedTarget(fixed_costs)


def trial(layers: int, forecast: float) -> LayersTrial:
    return LayersTrial(layers, 0.001, 0.5, 2, forecast)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    path = write_llama(tmp_path_factory.mktemp("self"), layers=4)
    return Models(target=str(path), draft="self")


@pytest.fixture
def shop(models: Models, tmp_path: Path) -> Shop:
    found = Shop(DataDirectory(tmp_path / "data"), config_of(models))
    found.collect(PROMPTS[:60])
    return found


def test_the_highest_forecast_decides() -> None:
    chosen = choose([trial(1, 0.9), trial(2, 1.1), trial(4, 1.0)])
    assert (chosen.layers, chosen.is_settled, len(chosen.trials)) == (2, True, 3)
    assert "2: 0.500 accepted per position, 1.10x at K = 2" in chosen.why


def test_fewer_layers_decide_between_equals() -> None:
    assert choose([trial(1, 1.0), trial(2, 1.0)]).layers == 1


def test_a_choice_is_made_once_and_kept(shop: Shop) -> None:
    pair, said = load_pair(shop.config.models, names=shop.data.names), list[str]()
    settled = settle_layers(pair, shop.data, shop.config, said.append, target=TARGET)
    assert settled.self_layers is not None
    assert settled.self_layers.is_settled
    assert [one.layers for one in settled.self_layers.trials] == numbers_to_try(pair, shop.config.models) == [1, 2]
    assert said[-1] == settled.self_layers.why
    assert len(settled.draft.layers) == settled.self_layers.layers
    assert settled.adapter is None
    # 2. Nothing is left of the trials, no version was made, and it is not done again.
    assert shop.data.registry.versions() == []
    assert [path.name for path in shop.data.runs.iterdir() if path.name.startswith(".layers")] == []
    again = load_pair(shop.config.models, names=shop.data.names)
    assert again.self_layers == settled.self_layers
    assert settle_layers(again, shop.data, shop.config, said.append) is again


def test_too_few_failures_choose_nothing(shop: Shop, tmp_path: Path) -> None:
    few = Shop(DataDirectory(tmp_path / "few"), shop.config)
    few.collect(PROMPTS[:12])
    pair = load_pair(few.config.models, names=few.data.names)
    with pytest.raises(NothingToDo, match=r"there are 1\d that can be trained on, expected at least 20"):
        settle_layers(pair, few.data, few.config, target=TARGET)
    assert few.data.names.self_layers.of(pair.identity.target) is None


def test_a_stop_leaves_it_open(shop: Shop) -> None:
    pair = load_pair(shop.config.models, names=shop.data.names)
    with pytest.raises(Interrupted, match="while the layers of the self-draft were chosen"):
        settle_layers(pair, shop.data, shop.config, stop=StopAfter(3), target=TARGET)
    assert shop.data.names.self_layers.of(pair.identity.target) is None
    assert [path.name for path in shop.data.runs.iterdir() if path.name.startswith(".layers")] == []


def test_a_retrain_that_is_stopped_meanwhile_does_not_say_that_it_goes_on_from_there(shop: Shop) -> None:
    with pytest.raises(Interrupted, match="were chosen; the next training begins with that again"):
        shop.retrain(stop=StopAfter(3))


def test_what_a_killed_process_left_goes(shop: Shop) -> None:
    left = shop.data.runs / ".layers-trial-old"
    left.mkdir(parents=True)
    settle_layers(load_pair(shop.config.models, names=shop.data.names), shop.data, shop.config, target=TARGET)
    assert not left.exists()


def test_without_the_target_the_rule_s_number_is_kept(shop: Shop) -> None:
    pair = load_pair(shop.config.models, names=shop.data.names)
    kept = without_trials(pair, shop.data, "no target")
    assert kept.self_layers is not None
    assert (kept.self_layers.layers, kept.self_layers.is_settled) == (1, True)
    assert kept.self_layers.why == "1 layers by rule: no target"


def test_a_configured_number_is_nothing_to_choose(shop: Shop) -> None:
    models = shop.config.models.model_copy(update={"draft": "self:3"})
    pair = load_pair(models, names=shop.data.names)
    assert settle_layers(pair, shop.data, shop.config) is pair


def test_retrain_chooses_trains_and_promotes(shop: Shop) -> None:
    shop.collect(PROMPTS[60:])
    found = shop.retrain()
    assert found.steps == ["train", "gate"]
    assert found.outcome == "promoted"
    pair = load_pair(shop.config.models, names=shop.data.names)
    champion = pair.with_adapter(shop.data.registry.resolve("champion"))
    assert champion.adapter == "v0001"
    assert shop.retrain().steps in (["nothing"], ["wait"])


def training_of_trials(shop: Shop, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Training:
    """How the first trial of a run of `retrain` is to train; it is not made."""
    found: list[Config] = []

    def noted(_pair: Pair, _data: DataDirectory, config: Config, **_options: Any) -> None:
        found.append(config)
        raise TrainingFailed("that is enough")

    monkeypatch.setattr(layers_choice, "train", noted)
    with pytest.raises(TrainingFailed):
        shop.retrain(**options)
    return found[0].training


def test_trials_keep_to_the_limits_of_a_training(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.config = config_of(shop.config.models, retrain={"max_minutes": 32.0, "max_memory_gb": 5.0})
    training = training_of_trials(shop, monkeypatch, beside=Beside("a test", 3.0))
    assert (training.memory, training.max_minutes) == (3.0, 2.0)


@pytest.mark.parametrize(("teacher", "of_trials"), [("live", "live"), ("logged", "live"), ("none", "none")])
def test_what_was_kept_of_the_teacher_is_not_looked_for_in_trials(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, teacher: str, of_trials: str
) -> None:
    shop.config = config_of(shop.config.models, training={"teacher": teacher})
    assert training_of_trials(shop, monkeypatch).teacher == of_trials


@pytest.mark.parametrize("has_target", [True, False])
def test_a_number_whose_version_is_in_use_is_kept_with_that_version(shop: Shop, has_target: bool) -> None:
    """As after `self:1`, when `self` begins with one layer too."""
    name = shop.add_version(0.1)
    shop.data.registry.promote(name, "a test", shop.data.registry.pointer().sequence)
    pair = load_pair(shop.config.models, shop.data.registry.resolve("champion"), name, names=shop.data.names)
    if has_target:
        settled = settle_layers(pair, shop.data, shop.config, target=TARGET)
    else:
        settled = without_trials(pair, shop.data, "no target")
    assert settled.self_layers == shop.data.names.self_layers.of(pair.identity.target)
    assert settled.self_layers is not None
    assert (settled.self_layers.layers, settled.self_layers.is_settled) == (1, True)
    assert (settled.adapter, settled.identity) == (name, pair.identity)
    assert lora.is_attached(settled.draft)
