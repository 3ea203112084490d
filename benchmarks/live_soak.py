"""Three nights in fast motion: a server learns from prompts that shift: python benchmarks/live_soak.py

Prompts, rounds and figures are those of `soak`. But `draftloop serve --learn idle` answers the prompts of each day, in
which no pause is long enough for it to train, and at night nobody asks. No command is called but `status`, which
changes nothing: the server alone begins trainings, and puts what the gate promotes into use.
"""

from __future__ import annotations

import prepared  # noqa: F401

# isort: split
import tempfile
import time
from pathlib import Path
from typing import Any

import soak
from live_world import LiveServer, live_server
from soak import Home, Size

from draftloop.config import Speculative
from draftloop.retraining.facts import SETTLING

IDLE_MINUTES = 0.5  # far more than a look at `status` takes
A_MOMENT = 2.0  # seconds in which a server that became idle begins
DEFAULTS = Speculative()


class ServedHome(Home):
    """A data directory that a server fills, and trains in."""

    def __init__(self, folder: Path, size: Size, server: LiveServer) -> None:
        super().__init__(folder, size)
        self._server, self._tokens = server, size.tokens
        self._dusk, self._runs = 0.0, 0  # when the last night began, and the runs of `retrain` before it

    def collect(self, prompts: list[str]) -> None:
        """Ask, and wait for all records."""
        self._server.ask(
            prompts,
            max_tokens=self._tokens,
            temperature=DEFAULTS.temperature,
            num_draft_tokens=DEFAULTS.num_draft_tokens,
            seed=DEFAULTS.seed,
            metadata={"source": soak.SOURCE},
        )
        ended = self._server.metric('request_success_total{finished_reason="length"}')
        ended += self._server.metric('request_success_total{finished_reason="stop"}')
        self._server.until(lambda: self._server.metric("records_captured_total") >= ended, "all records")

    def retrain(self) -> dict[str, Any]:
        """Wait for the end of a night: what the last run did that came to a verdict, or else the last of all."""
        self._dusk, self._runs = time.monotonic(), len(self._server.data.audit.entries())
        self._server.until(self._is_over, "the end of the night")
        made = self._server.data.audit.entries()[self._runs :]
        settled = [run for run in made if run["outcome"] in SETTLING] or made
        return {**settled[-1], "champion": made[-1]["champion"], "seconds": time.monotonic() - self._dusk}

    def _is_over(self) -> bool:
        """After a verdict the server looks again at once for more to do. Of the day may be a look at the champion."""
        if time.monotonic() < self._dusk + 60 * IDLE_MINUTES + A_MOMENT:
            return False
        made = self._server.data.audit.entries()[self._runs :]
        return bool(made) and made[-1]["outcome"] not in SETTLING and not self._server.has_child


def main() -> None:
    size = soak.wanted_size(__doc__)
    settings = {"retrain.min_interval_minutes": 0}
    with tempfile.TemporaryDirectory(prefix="draftloop-live-soak-") as name:
        folder = Path(name)
        with live_server(folder, IDLE_MINUTES, settings) as server:
            home = ServedHome(folder, size, server)
            rounds = soak.all_rounds(home, size)
        soak.report("live_soak", home, rounds, size)


if __name__ == "__main__":
    main()
