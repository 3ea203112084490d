"""A server that learns: its idle training, what that may take of the memory, and the answers to what it asks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..config import Config
from ..data_directory import DataDirectory
from ..errors import StoreError
from ..models.pair import bytes_of
from ..retraining.train_step import note_killed_on_purpose
from ..runtime.memory import budget, bytes_left, read_device, smaller
from .child_plan import ChildPlan, plan_child
from .child_questions import ChildQuestions
from .drafts import Drafts
from .engine import Engine
from .idle_training import ChildCommand, IdleTraining, Seen, Told
from .metrics import Metrics


@dataclass(frozen=True)
class Learning:
    """The child, and who answers it."""

    training: IdleTraining
    questions: ChildQuestions

    def close(self) -> None:
        """End the child with a checkpoint."""
        self.questions.close()
        self.training.close()


def set_up_learning(
    command: ChildCommand,
    engine: Engine,
    drafts: Drafts,
    data: DataDirectory,
    config: Config,
    metrics: Metrics,
    say: Callable[[str], None],
) -> Learning:
    """Nothing begins before `training.start`.

    Args:
        command: of the child.
        engine: of the server; it has loaded its models by the time that anything begins.
        drafts: of the server.
        data: read on the learner's thread.
        config: of everything.
        metrics: told what the child is doing.
        say: told what happens, in lines for a person.
    """

    def plan() -> ChildPlan | None:
        assert engine.served is not None
        pair, limit = engine.served.pair, smaller(config.training.memory, config.retrain.max_memory_gb)
        return plan_child(bytes_left(budget("auto", read_device())), bytes_of(pair.target), bytes_of(pair.draft), limit)

    def killed() -> None:
        try:
            note_killed_on_purpose(data)
        except StoreError as error:
            say(f"learning: {error}")

    questions = ChildQuestions(drafts.candidate, data.costs, lambda: not engine.is_idle, say)
    seen = Seen(is_idle=lambda: engine.is_idle, captured=lambda: metrics.captured_so_far, plan=plan)
    told = Told(say, metrics.learner, killed, questions.answer)
    return Learning(IdleTraining(command, 60 * config.serve.idle_minutes, seen, told), questions)
