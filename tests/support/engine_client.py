"""Whoever asks an engine, from a thread of its own."""

from __future__ import annotations

import queue
from dataclasses import dataclass, field

from draftloop.models.pair import Pair
from draftloop.prompts.prompt import Prompt
from draftloop.serving.asked import Asked
from draftloop.serving.engine import Engine
from draftloop.serving.events import Ended, Event, NewText, Refused
from draftloop.serving.job import Job


@dataclass
class Client:
    """Asks an engine, from a thread of its own."""

    engine: Engine
    pair: Pair
    ended: list[Job] = field(default_factory=list)

    def ask(
        self, text: str | tuple[int, ...], *, owner: str = "", source: str = "test", length: int = 40, **wanted: object
    ) -> tuple[Job, queue.Queue[Event]]:
        events: queue.Queue[Event] = queue.Queue()
        fields = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "max_tokens": length} | wanted
        tokens = text if isinstance(text, tuple) else tuple(self.pair.tokenizer.encode(text))
        prompt = Prompt(text) if isinstance(text, str) else text
        asked = Asked(kind="text", prompt=prompt, **fields)  # type: ignore[arg-type]
        job = Job(asked, tokens, owner, source, events.put)
        self.engine.submit(job)
        return job, events

    def answer(self, text: str | tuple[int, ...], **wanted: object) -> tuple[str, Ended]:
        return answer_of(self.ask(text, **wanted)[1])


def answer_of(events: queue.Queue[Event]) -> tuple[str, Ended]:
    text = ""
    while True:
        event = events.get(timeout=60)
        if isinstance(event, NewText):
            text += event.piece.text
        elif isinstance(event, Ended):
            return text, event
        else:
            assert isinstance(event, Refused)
            raise event.error
