"""A server that learns, or the child that trains for it, is killed at any moment of the cycle: both go on from there.

Prompts are answered and recorded. When nobody asks, a child trains and the gate decides; then the pointer moves, and
requests begin with another draft. A kill comes at a random time after one of these began.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Literal

import pytest
from clients import COMPLETIONS, ask, connect, metric, reply_on, request, until
from fault_table import Row
from log_files import read
from server import Server
from shop import LATER_WORDS, WORDS, Shop

from draftloop.data_directory import DataDirectory
from draftloop.models.pair import Pair, load_pair
from draftloop.registry.registry import AUDIT
from draftloop.store.journal import Journal

pytestmark = pytest.mark.row("kill -9 of a server that learns")

KILLS = 50  # of one test, where all are asked for
PER_WORLD = 10  # of them in one data directory, in which a promotion soon becomes rare
LONGEST = 0.6  # seconds from the beginning of a stage to a kill
SOME = 4  # prompts at a time
SETTINGS: dict[str, object] = {
    "serve.learn": "idle",
    "serve.idle_minutes": 0,
    "serve.max_concurrent": 1,  # so there is a draft at every position, and a record a moment after its answer
    "retrain.min_interval_minutes": 0,
    "training.epochs": 6,
    "training.learning_rate": 0.005,
    "training.min_failure_cases": 3,
    "training.answers": 0,
    "training.proposals": 0,
    "training.lora.rank": 4,
    "training.save_every": 1,
    "gate.alpha": 0.49,  # a gate that promotes easily, for promotions are a part of the cycle
    "gate.max_attempts": 1,
    "gate.min_heldout_prompts": 2,
    "gate.max_drop_share": 0.9,
    "gate.material_drop_share": 0.9,
    "gate.max_draft_tokens": 2,
    "gate.live_prompts": 1,
}
UNASKED = [" ".join(words) for words in product(LATER_WORDS, WORDS, LATER_WORDS)]
ANSWERING, A_VERDICT = "answering", "a verdict"
STAGES = {  # what the server says when a stage begins
    "training": ("learning: train: ", "learning: resume: "),
    "the gate": ("learning: gate: ",),
    "scoring": ("learning: scoring ",),
    "the verdict": ("learning: timing steps ",),
    "a swap": ("requests begin with ",),
    A_VERDICT: (),  # which is written down, and not said
}


@dataclass(frozen=True)
class Kill:
    """Who is killed, so many seconds after a stage began."""

    victim: Literal["server", "child"]
    stage: str
    delay: float


FEW = [Kill("child", "training", 0.1), Kill("server", "scoring", 0.1), Kill("server", ANSWERING, 0.0)]


@dataclass
class World:
    """A data directory that is served, and what must be true of it from now on.

    Attributes:
        pair: with the bare draft.
        unasked: prompts, for each is asked a single time.
        acknowledged: tokens of the output, by the prompt of every answer whose record was written.
        sequence: of the pointer, as it was seen last.
    """

    shop: Shop
    pair: Pair
    unasked: Iterator[str] = field(default_factory=lambda: iter(random.Random(0).sample(UNASKED, len(UNASKED))))
    acknowledged: dict[str, int] = field(default_factory=dict)
    sequence: int = 0

    @property
    def root(self) -> Path:
        return self.shop.data.root

    def server(self) -> Server:
        models = self.shop.config.models
        flags = ("--model", models.target, "--draft-model", models.draft, "--num-draft-tokens", "2")
        return Server(self.root, *flags, settings=SETTINGS)

    def next_request(self) -> dict[str, object]:
        return {"prompt": next(self.unasked), "temperature": 0.8, "max_tokens": 8}

    def ask_some(self, server: Server) -> None:
        """Have some prompts answered, and all records written."""
        for _ in range(SOME):
            fields = self.next_request()
            reply = ask(server, COMPLETIONS, fields)
            assert reply.status == 200
            ended = metric(server, "request_success_total")
            until(lambda: metric(server, "records_captured_total") >= ended, "the records")  # noqa: B023 - of now
            self.acknowledged[str(fields["prompt"])] = reply.json["usage"]["completion_tokens"]

    def verdicts(self) -> int:
        """How many there are on candidates so far."""
        entries = DataDirectory(self.root).audit.entries()
        return sum(entry["outcome"] in ("promoted", "refused") for entry in entries)

    def trainings(self) -> list[int]:
        """The processes of `retrain` in this directory."""
        command = ["ps", "-A", "-ww", "-o", "pid=,stat=,args="]
        shown = subprocess.run(command, capture_output=True, check=True, text=True).stdout
        rows = (line.split(None, 2) for line in shown.splitlines())
        return [int(pid) for pid, state, args in rows if f"{self.root} retrain" in args and not state.startswith("Z")]

    def check(self) -> None:
        """The champion loads, no version was promoted twice, and what was acknowledged is there once."""
        registry = DataDirectory(self.root).registry
        champion, pointer = registry.resolve("champion"), registry.pointer()
        if champion is not None:
            self.pair.twin().with_adapter(champion)
        assert pointer.sequence >= self.sequence
        self.sequence = pointer.sequence
        moves = {int(line["pointer"]): line for line in Journal(registry.root / AUDIT).entries()}
        made = [moves[number] for number in range(1, pointer.sequence + 1)]
        promoted = Counter(move["champion"] for move in made if move["what"] == "promote")
        assert max(promoted.values(), default=1) == 1
        records = read(self.shop.data.log.path)
        assert max(Counter(record.prompt for record in records).values()) == 1
        written = {record.prompt: len(record.target_output) for record in records}
        assert {prompt: written.get(prompt) for prompt in self.acknowledged} == self.acknowledged


def reach(world: World, server: Server, stage: str) -> None:
    """Wait until a stage begins, or there is a verdict without it; a learner with nothing to do gets more to learn."""
    said, verdicts = len(server.said), world.verdicts()

    def has_begun() -> bool:
        if not metric(server, "learner_at_work") and not metric(server, "learner_stopped"):
            world.ask_some(server)
        if stage == ANSWERING:
            return metric(server, "learner_at_work") == 1
        begun = any(words in line for line in server.said[said:] for words in STAGES[stage])
        return begun or world.verdicts() > verdicts

    def found() -> str:
        audit = DataDirectory(world.root).audit.entries()[-3:]
        return f"said {server.said[said:][-12:]}, audit {[(one['outcome'], one['why']) for one in audit]}"

    until(has_begun, stage, found)


def strike(world: World, server: Server, kill: Kill) -> bool:
    """Wait for the moment, and kill; False where there was no child just then."""
    if kill.stage != ANSWERING:
        world.ask_some(server)
    reach(world, server, kill.stage)
    with ExitStack() as stack:
        connections = [
            stack.enter_context(closing(connect(server))) for _ in range(SOME if kill.stage == ANSWERING else 0)
        ]
        for connection in connections:
            connection.sendall(request(COMPLETIONS, world.next_request()))
        time.sleep(kill.delay)  # the moment, on which no outcome depends
        if kill.victim == "server":
            assert server.stop(signal.SIGKILL) == -signal.SIGKILL
            until(lambda: not world.trainings(), "the end of its child")
            return True
        killed = world.trainings()
        for process in killed:
            os.kill(process, signal.SIGKILL)
        until(lambda: not set(killed) & set(world.trainings()), "the end of the child")
        assert all(reply_on(connection).status == 200 for connection in connections)
    return bool(killed)


def live_through(shop: Shop, kills: list[Kill], row: Row) -> World:
    """A world in which all of these come, one after the other, and which goes on after them."""
    world, left = World(shop, load_pair(shop.config.models, names=shop.data.names)), deque(kills)
    while left:
        with world.server() as server:
            while left and server.process.poll() is None:
                if strike(world, server, left[0]):
                    row.struck[f"the {left[0].victim} at {left[0].stage}"] += 1
                    left.popleft()
                world.check()
    with world.server() as server:
        reach(world, server, A_VERDICT)  # what is scored may be a look, which gives none
        assert server.stop() == 0
    world.check()
    return world


def planned(seed: int) -> list[Kill]:
    """Kills at random."""
    choose = random.Random(seed)
    victims: list[Literal["server", "child"]] = ["server", "child", "child"]
    stages = [ANSWERING, *(stage for stage in STAGES if stage != A_VERDICT)]
    return [Kill(choose.choice(victims), choose.choice(stages), LONGEST * choose.random()) for _ in range(KILLS)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.some(1)
def test_the_cycle_goes_on_whoever_is_killed_at_whatever_moment(
    tmp_path: Path, collected: Shop, row: Row, seed: int
) -> None:
    kills = planned(seed) if row.full else FEW
    for first in range(0, len(kills), PER_WORLD):
        world = live_through(collected.copy(tmp_path / str(first)), kills[first : first + PER_WORLD], row)
        row.did(len(world.acknowledged), "answers whose record was written")
        row.did(world.sequence, "moves of the pointer")
    row.did(len(kills), "kills")
