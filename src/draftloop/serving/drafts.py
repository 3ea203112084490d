"""The draft that answers requests: the champion's, and the new champion's once the pointer has moved. Knows no request.

    pointer.json -> `renewed`, between two turns -> a twin of the draft with that adapter, verified, for requests that
                    begin; those under way end with the draft that they began with

The base draft is loaded once. Each adapter is put on a twin of it, which shares its arrays, and goes with its last
request. A version that cannot be used leaves the draft in use, and is tried again a minute later: memory or a file may
be there by then.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

from ..errors import DraftloopError
from ..models.pair import Pair
from ..registry.registry import Pointer, Registry
from ..runtime.memory import REFUSALS
from .metrics import Metrics
from .served import Served

LOOK_EVERY = 1.0  # seconds between two looks at the pointer
TRY_AGAIN = 60.0  # seconds after which a champion that could not be used is tried again


class Drafts:
    """From the registry to `Served`.

    Args:
        registry: of the data directory.
        reference: an adapter as `--adapter` takes it; only `champion` follows the pointer.
        load: loads the pair with the bare draft.
        renew: gives that pair with the draft of now, whose layers and tokens another process may have chosen.
        serve: what is known of a pair, and how it is decoded.
        metrics: says which version is in use, and which could not be.
        say: told of each change, in a line for a person.
    """

    def __init__(
        self,
        registry: Registry,
        reference: str,
        load: Callable[[], Pair],
        renew: Callable[[Pair], Pair],
        serve: Callable[[Pair], Served],
        metrics: Metrics,
        say: Callable[[str], None],
    ) -> None:
        self._registry, self._reference = registry, reference
        self._load, self._renew, self._serve = load, renew, serve
        self._metrics, self._say = metrics, say
        self._base: Pair | None = None
        self._sequence = 0
        self._next = 0.0
        self._again = math.inf  # when the champion is tried again; inf where nothing is wrong with it
        self._complaint = ""  # of the latest look

    def first(self) -> Served:
        """Load the pair, with the adapter. Raises what `load` raises; AdapterError: the adapter cannot be used."""
        self._sequence = self._registry.pointer().sequence
        path = self._registry.resolve(self._reference)
        self._base = self._load()
        pair = self._base.twin()
        if path is not None:
            pair = pair.with_adapter(path, self._registry.name_of(path))
        return self._in_use(pair)

    def renewed(self, served: Served, now: float | None = None) -> Served | None:
        """What requests are to begin with from now on, where that is another draft; looks at most once a second.

        Args:
            served: in use.
            now: seconds of `time.monotonic`.
        """
        now = time.monotonic() if now is None else now
        if self._reference != "champion" or now < self._next:
            return None
        self._next = now + LOOK_EVERY
        try:
            pointer = self._registry.pointer()
            if pointer.sequence == self._sequence and now < self._again:
                self._complaint = self._complaint if self._again < math.inf else ""
                return None
            self._sequence, self._again = pointer.sequence, now + TRY_AGAIN
            pair = self._following(served.pair, pointer)
            renewed = None if pair is None else self._in_use(pair, served)
        except (DraftloopError, OSError, *REFUSALS) as error:  # such as no file or memory left
            self._stays(served, error)
            return None
        self._again, self._complaint = math.inf, ""
        if renewed is not None:
            self._say(f"requests begin with {renewed.pair.adapter or 'the bare draft'} from now on")
        return renewed

    def _following(self, pair: Pair, pointer: Pointer) -> Pair | None:
        """The pair with the champion of now; None where that is the draft in use."""
        if pointer.champion == pair.adapter:
            return None
        path = self._registry.resolve("champion")  # by now it may be another one
        return self._bare().with_adapter(path, None if path is None else self._registry.name_of(path))

    def _bare(self) -> Pair:
        """The pair with a bare draft of its own."""
        assert self._base is not None  # `first` comes first
        self._base = self._renew(self._base)
        return self._base.twin()

    def _served_with(self, pair: Pair, before: Served) -> Served:
        """What is known of the pair in use holds for another adapter, and not for another draft.

        But the memory for requests is still that: what is left now is less by the caches of those under way.
        """
        if pair.identity == before.pair.identity and pair.vocabulary == before.pair.vocabulary:
            return before.with_pair(pair)
        return replace(self._serve(pair), room=None if before.room is None else before.room.with_pair(pair))

    def _stays(self, served: Served, error: Exception) -> None:
        """Say why the draft in use stays, once for as long as the reason is the same."""
        complaint = f"{served.pair.adapter or 'the bare draft'} stays in use: {error}"
        if complaint != self._complaint:
            self._metrics.not_swapped()
            self._say(complaint)
        self._complaint = complaint

    def candidate(self, version: str | None) -> Pair:
        """The pair with a version on a draft of its own, made as it is for decoding; nothing in use changes.

        Raises:
            AdapterError: there is no such version, or it cannot be used.
        """
        pair = self._bare()
        if version is not None:
            pair = pair.with_adapter(self._registry.resolve(version), version)
        pair.merge()
        return pair

    def _in_use(self, pair: Pair, before: Served | None = None) -> Served:
        """Made as it is for decoding first, so that what this takes of the memory is not given to requests."""
        pair.merge()
        served = self._serve(pair) if before is None else self._served_with(pair, before)
        self._metrics.champion(pair.adapter or "base")
        return served
