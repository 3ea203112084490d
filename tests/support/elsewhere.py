"""A target that must not be asked for anything, and a server that has another one."""

from __future__ import annotations

from typing import Any

from draftloop.decoding.decoder import Decoding
from draftloop.decoding.draft_length import LatencyProfile
from draftloop.evaluation.gate_target import LiveOutput, LivePrompt, live_output
from draftloop.models.pair import Pair


class BlindTarget:
    """A target that nobody may ask."""

    def __call__(self, *_arguments: Any, **_options: Any) -> Any:
        raise AssertionError("the target was to be left alone")


class TargetServer:
    """Whoever has the target (`TargetElsewhere`); its draft carries what it carries.

    Attributes:
        asked: the versions that were asked for, in order.
    """

    def __init__(self, pair: Pair) -> None:
        self.pair, self.asked = pair, list[str | None]()

    def latency(self, version: str | None, most: int) -> LatencyProfile:
        """A machine that always takes the same time."""
        self.asked.append(version)
        return LatencyProfile(0.001, tuple(0.01 + 0.0001 * k for k in range(most + 1)))

    def decode(self, version: str | None, prompt: LivePrompt) -> LiveOutput:
        """Decoded at once."""
        self.asked.append(version)
        return live_output(list(Decoding(self.pair, prompt.tokens, prompt.settings)))
