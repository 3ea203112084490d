"""A file keeps the latency profiles of pairs on this machine, and their fastest settings. Imports no mlx.

It is a cache, one JSON object by pair and machine: a damaged one is measured again, one that may not be read stays. A
cache is no reason to make a data directory: where there is none, nothing is kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from ..config import Rule
from ..decoding.draft_length import Experience, LatencyProfile
from ..store.atomic import write_atomically
from ..store.files import FILES, Files


@dataclass(frozen=True)
class Advice:
    """The setting that was fastest when it was measured.

    Attributes:
        num_draft_tokens: 0 leaves speculation off.
        rule: of acceptance, above temperature 0; None where nothing was measured there.
        speed_up: tokens per second over those of plain decoding.
    """

    num_draft_tokens: int
    rule: Rule | None
    speed_up: float


@dataclass(frozen=True)
class StoredProfile:
    """Of one pair on one machine; `experience` is of the last outputs under each rule, whatever their adapter."""

    costs: LatencyProfile
    advice: Advice | None = None
    experience: dict[Rule, Experience] = field(default_factory=dict)


def pair_key(target: str, draft: str, *, greedy: bool) -> str:
    """What the keys of two models begin with, by the names that they have in a data directory."""
    return f"{target[:16]}.{draft[:16]}.{'greedy' if greedy else 'sampled'}."


class LatencyProfiles:
    """The file.

    Args:
        path: of the JSON, directly in the data directory; neither need be there.
        files: the seam.
    """

    def __init__(self, path: Path, files: Files = FILES) -> None:
        self._path, self._files = path, files

    def of(self, key: str) -> StoredProfile | None:
        """What is known under `key`, the fingerprint of a pair and a machine; None is nothing, or nothing readable."""
        with suppress(PermissionError):  # and `keep` says so
            return self._all().get(key)
        return None

    def of_pair(self, target: str, draft: str) -> StoredProfile | None:
        """What was measured of two models last, with sampling or else without, on whichever machine that was."""
        with suppress(PermissionError):
            known = self._all()
            for greedy in (False, True):
                prefix = pair_key(target, draft, greedy=greedy)
                found = [one for key, one in known.items() if key.startswith(prefix)]
                if found:
                    return found[-1]
        return None

    def of_or_measured(
        self, key: str, most: int, measure: Callable[[], LatencyProfile], say: Callable[[str], None]
    ) -> StoredProfile:
        """What is known under `key`, with latencies of every K up to `most`: measured now where they are missing."""
        known = self.of(key)
        if known is not None and len(known.costs.t_target) > most:
            return known
        say("measuring the latency profile of this machine once, to choose the draft length by it")
        costs = measure()
        known = StoredProfile(costs) if known is None else replace(known, costs=costs)
        self.keep_or_say(key, known, say)
        return known

    def keep_or_say(self, key: str, known: StoredProfile, say: Callable[[str], None]) -> None:
        """`keep`; that it cannot be done ends nobody's output."""
        try:
            self.keep(key, known)
        except OSError as error:
            say(f"the latency profile is not kept for the next output: {error}")

    def keep(self, key: str, known: StoredProfile) -> bool:
        """Remember, over what was known, and say whether it is kept. Raises OSError: what the system said."""
        if not self._path.parent.is_dir():
            return False
        profiles = {name: one for name, one in self._all().items() if name != key} | {key: known}  # the latest is last
        text = json.dumps({name: asdict(one) for name, one in profiles.items()}, indent=1)
        write_atomically(self._path, text.encode(), self._files)
        return True

    def _all(self) -> dict[str, StoredProfile]:
        try:
            return _FORMAT.validate_json(self._path.read_bytes())
        except PermissionError:  # others' profiles may be in it
            raise
        except (OSError, ValidationError):
            return {}


_FORMAT = TypeAdapter(dict[str, StoredProfile])
