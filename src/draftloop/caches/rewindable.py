"""A prompt cache that takes back tokens exactly, whatever a model keeps of them. Knows no text and no sampling.

Three kinds of leaves, by what a pass over S tokens leaves in them and what taking back n of them needs:

    keys and values   S entries behind the others           trim n
    windows           the same, with older entries behind   trim n
    states            another state                         the state before the pass, and its first S - n tokens again

So passes that may be taken back are kept in a journal: their tokens, the states before them, and what their recurrent
layers were given. Whole passes are taken back by putting states back. Part of a pass is read again, in one of two ways:

    local   by the recurrent layers alone, on what they were given in that pass
    eager   by the whole model, without its logits

`settle` empties the journal: what was read until then stays. A cache that has no state needs none, and keeps none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

from .leaves import Snapshot, can_trim, copied, is_state, leaves_of, put_back, rewindable, snapshot, stock
from .recorder import Call, Recorder

Way = Literal["trim", "local", "eager"]


@dataclass(frozen=True)
class _Pass:
    """A pass that may be taken back.

    Attributes:
        tokens: (S,).
        before: of each state, what it held.
        calls: of the recurrent layers; empty where they were not noted.
    """

    tokens: mx.array
    before: list[Snapshot]
    calls: list[Call] = field(default_factory=list)


class RewindableCache:
    """The cache of one model for one output, and the passes over it.

    Args:
        model: reads the tokens.
        slack: the most tokens that are taken back at once.
        recorder: of the model, for the way `local`; None for `eager`, or where the cache has no state.

    Attributes:
        layers: the caches as mlx-lm's model takes them.
    """

    def __init__(self, model: nn.Module, slack: int, recorder: Recorder | None = None) -> None:
        self._model, self._recorder, self._slack = model, recorder, slack
        self._hold(rewindable(make_prompt_cache(model), slack))

    def _hold(self, layers: Sequence[Any]) -> None:
        self.layers = list(layers)
        leaves = leaves_of(self.layers)
        self._states = [leaf for leaf in leaves if is_state(leaf)]
        self._trimmed = [leaf for leaf in leaves if not is_state(leaf)]
        self._journal: list[_Pass] = []

    def prefill(self, tokens: mx.array, step: int) -> None:
        """Read tokens (N,) for good, `step` at a time, without computing logits."""
        for _ in self.prefilling(tokens, step):
            pass

    def prefilling(self, tokens: mx.array, step: int) -> Iterator[int]:
        """`prefill`, which gives way after each step; yields how many tokens it has read by then."""
        self.settle()
        for start in range(0, tokens.size, step):
            self._model(tokens[start : start + step][None], cache=self.layers)
            self.evaluate()
            mx.clear_cache()
            yield min(start + step, tokens.size)

    def read(self, tokens: mx.array) -> mx.array:
        """Logits (N, V) after each of the tokens (N,); not evaluated."""
        if not self._states:
            logits: mx.array = self._model(tokens[None], cache=self.layers)[0]
            return logits
        before = [snapshot(leaf) for leaf in self._states]
        calls: list[Call] = []
        recording = nullcontext() if self._recorder is None or tokens.size == 1 else self._recorder.recording(calls)
        with recording:  # a pass over one token is taken back whole or not
            logits = self._model(tokens[None], cache=self.layers)[0]
        self._journal.append(_Pass(tokens, before, calls))
        return logits

    def settle(self) -> None:
        """What was read so far is never taken back."""
        self._journal.clear()

    def rewind(self, count: int) -> None:
        """Take back the last `count` tokens, none of which is settled."""
        if count == 0:
            return
        if not self._states:
            self._trim(count)
            return
        while count and self._journal and count >= self._journal[-1].tokens.size:
            last = self._journal.pop()
            self._trim(last.tokens.size)
            self._restore(last)
            count -= last.tokens.size
        if count:
            if not self._journal:
                raise ValueError(f"{count} tokens to take back that are settled")
            self._cut_last(count)

    def can_trim(self, count: int) -> bool:
        """Whether the last `count` tokens can be taken back though they are settled: not where there is a state."""
        return count == 0 or (not self._states and all(can_trim(leaf, count) for leaf in self._trimmed))

    def trim(self, count: int) -> None:
        """Take back the last `count` tokens, where it `can_trim`; nothing before them can be rewound then."""
        self.settle()
        self._trim(count)

    @property
    def has_states(self) -> bool:
        """Whether something in it cannot be trimmed."""
        return bool(self._states)

    @property
    def nbytes(self) -> int:
        """Bytes of all that it holds, unused room included."""
        leaves = (*self._states, *self._trimmed)
        return sum(
            value.nbytes for _, value in tree_flatten([vars(leaf) for leaf in leaves]) if hasattr(value, "nbytes")
        )

    def stock(self) -> list[Any]:
        """The layers as mlx-lm's own caches; what was read so far is settled."""
        self.settle()
        return stock(self.layers)

    def hold(self, layers: Sequence[Any]) -> None:
        """Go on from caches of mlx-lm's, as `stock` gives them."""
        self._hold(rewindable(layers, self._slack))

    def evaluate(self) -> None:
        """Compute all that it holds."""
        mx.eval([leaf.state for leaf in (*self._states, *self._trimmed)])

    def copy(self) -> RewindableCache:
        """Another one that goes on from here; what was read so far is settled there."""
        other = object.__new__(RewindableCache)
        other._model, other._recorder, other._slack = self._model, self._recorder, self._slack
        other._hold(copied(self.layers))
        return other

    def _cut_last(self, count: int) -> None:
        """Of the last pass, take the last `count` tokens back; the others stay a pass that can be taken back."""
        last = self._journal.pop()
        length = last.tokens.size
        kept, tokens = length - count, last.tokens[: length - count]
        self._restore(last)
        if self._recorder is None:
            self._trim(length)
            self._model(tokens[None], cache=self.layers)
            calls: list[Call] = []
        else:
            calls = self._recorder.cut(last.calls, kept)
            written = {id(leaf) for call in calls for leaf in call.leaves}  # they append their entries once more
            self._trim(count, [leaf for leaf in self._trimmed if id(leaf) not in written])
            self._trim(length, [leaf for leaf in self._trimmed if id(leaf) in written])
            for call in calls:
                call.make()
        mx.async_eval([leaf.state for leaf in self._states])
        self._journal.append(_Pass(tokens, last.before, calls))

    def _restore(self, pass_: _Pass) -> None:
        for leaf, kept in zip(self._states, pass_.before, strict=True):
            put_back(leaf, kept)

    def _trim(self, count: int, leaves: Sequence[Any] | None = None) -> None:
        for leaf in self._trimmed if leaves is None else leaves:
            taken = leaf.trim(count) if can_trim(leaf, count) else 0  # one that cannot may take off what it has not
            if taken != count:
                raise ValueError(f"{count} tokens to take back, the cache has {taken}")
