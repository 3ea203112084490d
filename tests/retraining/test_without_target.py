"""A `retrain` beside a server: without the target it ends as it does with one, and a watch trains nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from elsewhere import BlindTarget, TargetServer
from shop import LATER, PROMPTS, Shop, config_of, fixed_costs, last_line, promote_by_hand

from draftloop.config import Models
from draftloop.decoding.draft_length import LatencyProfile
from draftloop.errors import Interrupted
from draftloop.evaluation.gate_target import LoadedTarget, LoggedTarget
from draftloop.models.pair import Pair, load_pair
from draftloop.retraining.facts import read_facts
from draftloop.retraining.run import Beside
from draftloop.retraining.running import Running, running
from draftloop.retraining.train_step import note_killed_on_purpose
from draftloop.training.run import RunDirectory


class World:
    """A data directory, the server that has the target, and a child that must not ask it itself."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        shop.config = config_of(shop.config.models, training={"teacher": "logged"})
        self.server = TargetServer(load_pair(shop.config.models, names=shop.data.names))
        self.target = LoggedTarget(self)

    def latency(self, version: str | None, most: int) -> LatencyProfile:
        return self.server.latency(version, most)

    def decode(self, version: str | None, prompt: Any) -> Any:
        path = None if version is None else self.shop.data.registry.root / version
        self.server.pair = self.server.pair.with_adapter(path)
        return self.server.decode(version, prompt)

    def load(self, models: Models, adapter: Path | None, name: str | None) -> Pair:
        pair = load_pair(models, adapter, name, lazy_target=True, names=self.shop.data.names)
        return replace(pair, target=BlindTarget())  # type: ignore[arg-type]

    def retrain(self, **beside: Any) -> Any:
        return self.shop.retrain(target=self.target, load=self.load, beside=Beside("for the server", **beside))


@pytest.fixture
def world(with_teacher: Shop, tmp_path: Path) -> World:
    return World(with_teacher.copy(tmp_path / "data"))


def test_it_trains_and_promotes(world: World) -> None:
    found = world.retrain()
    assert (found.outcome, found.steps, found.champion) == ("promoted", ["train", "gate"], "v0001")
    assert found.numbers["live"]["agrees"]
    assert found.numbers["acceptance_per_position"] == {}
    assert set(world.server.asked) == {"v0001"}


def test_it_rolls_back(world: World) -> None:
    shop = world.shop
    promote_by_hand(shop, shop.add_version(0.3))
    shop.collect(PROMPTS + LATER, seed=1)
    found = world.retrain()
    assert (found.outcome, found.champion) == ("rolled back", None)
    assert world.server.asked == []


def test_a_watch_looks_and_trains_nothing(world: World) -> None:
    shop = world.shop
    found = world.retrain(only_watches=True)
    assert (found.outcome, found.steps) == ("nothing", ["nothing"])
    assert "train waits for idle time" in found.why
    promote_by_hand(shop, shop.add_version(0.3))
    shop.collect(PROMPTS + LATER, seed=1)
    assert world.retrain(only_watches=True).outcome == "rolled back"


def test_a_server_that_ends_meanwhile_interrupts_it_and_the_next_one_goes_on(world: World) -> None:
    class Gone(World):
        def latency(self, version: str | None, most: int) -> LatencyProfile:
            raise Interrupted("the server has ended")

    with pytest.raises(Interrupted):
        Gone(world.shop).retrain()
    assert last_line(world.shop)["outcome"] == "interrupted"
    found = world.retrain()
    assert (found.outcome, found.steps) == ("promoted", ["gate"])


@contextmanager
def interrupted_training(shop: Shop, **options: Any) -> Iterator[RunDirectory]:
    """A run that was cut off after its first checkpoint."""

    class Stop:
        def __init__(self) -> None:
            self.steps = 0

        def __bool__(self) -> bool:
            return self.steps >= 3

    stop = Stop()

    def count(done: int, _of: int) -> None:
        stop.steps = done

    with pytest.raises(Interrupted):
        shop.retrain(stop=stop, on_step=count, **options)
    (run,) = RunDirectory.unfinished(shop.data.runs, "retrain", shop.data.files)
    yield run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("begun", "resumed", "steps"),
    [("live", "live", ["resume"]), ("live", "logged", ["train"]), ("logged", "live", ["resume"])],
)
def test_a_training_with_a_live_teacher_is_not_gone_on_with_without_the_target(
    shop: Shop, begun: str, resumed: str, steps: list[str]
) -> None:
    models = shop.config.models
    shop.config = config_of(models, training={"teacher": begun})
    with interrupted_training(shop):
        shop.config = config_of(models, training={"teacher": resumed})
        assert (read_facts(shop.data, shop.config, 0.0).run is not None) == (steps == ["resume"])
        assert shop.retrain().steps[:1] == steps


def test_it_is_shown_how_it_works(world: World) -> None:
    seen = []

    def look(_line: str) -> None:
        now = running(world.shop.data, 0.0)
        assert now is not None
        seen.append((now.how, str(now)))

    world.shop.retrain(say=look, target=world.target, load=world.load, beside=Beside("for the server, in 1 GB"))
    assert seen[0][0] == "for the server, in 1 GB"
    assert ", for the server, in 1 GB" in seen[0][1]
    stopped = Running(process=1, command="retrain", how="for the server", stopped=True)
    assert str(stopped) == "waiting until nobody asks the server: retrain, process 1, for the server: at its beginning"


@pytest.mark.slow
def test_memory_beside_the_server_bounds_the_training(world: World) -> None:
    found = world.retrain(memory_gb=1.5)
    assert found.outcome == "promoted"
    (run,) = RunDirectory.all(world.shop.data.runs)
    assert run.config().training.memory == 1.5


@pytest.mark.slow
def test_a_training_that_is_killed_on_purpose_is_gone_on_with_however_often(shop: Shop) -> None:
    with interrupted_training(shop) as run:
        for _ in range(5):
            run.note_resumption()
        note_killed_on_purpose(shop.data)
        assert run.note_resumption() == 1
    assert shop.retrain(target=LoadedTarget(fixed_costs)).steps[0] == "resume"
