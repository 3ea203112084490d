"""How a model's cache takes tokens back, found by trying it: read some, take some back, compare with single steps.

No list of model types says what works. Every way is tried on short texts, the cheapest first, and the first exact one
is used; where none is, the reason says what was off. Exact means as exact as this model's passes are among themselves:
in 16 bits a pass over several tokens and single steps round differently, and where that sends a token to other experts
their logits have little in common. There the way back is held against what the same passes give when nothing is taken
back, and of a few texts one has to agree: a wrong way is wrong on all of them.
"""

from __future__ import annotations

import random
import weakref
from collections.abc import Iterator, Sequence

import mlx.core as mx
from mlx import nn
from mlx_lm.models.cache import make_prompt_cache

from ..errors import PairError
from .leaves import is_state, leaves_of, rewindable
from .once import once_per_model
from .recorder import CannotRecord, Recorder
from .rewindable import RewindableCache, Way
from .whole_pass import read_whole
from .windows import WindowCache

_PREFIX, _PASS, _BACK, _AFTER = 20, 5, 3, 2  # tokens: read for good, read, taken back of these, read then
_LEAST, _TIMES, _MOST = 1e-3, 8.0, 0.2  # of the logits' standard deviation; times what rounding alone gives
_UNFIT = (CannotRecord, ValueError, TypeError, AttributeError, IndexError)  # what a model raises that takes no cache
_TEXTS = 4  # that are tried of each kind, where rounding may decide
_TOKENS = 64  # tokens from 0 on that the texts are made of, if the model has as many


class Rewinding:
    """How one model's caches take tokens back. It keeps no model alive.

    Args:
        model: whose.
        way: the cheapest exact one.
        recorder: for the way `local`.
    """

    def __init__(self, model: nn.Module, way: Way, recorder: Recorder | None = None) -> None:
        self._model, self.way, self._recorder = weakref.ref(model), way, recorder

    @property
    def model(self) -> nn.Module:
        """Whoever asks has it."""
        model = self._model()
        assert model is not None
        return model

    def cache(self, slack: int) -> RewindableCache:
        """A fresh one that takes up to `slack` tokens back at once."""
        return RewindableCache(self.model, slack, self._recorder)


class NoWayBack(PairError):
    """No way is exact for this model; the message is the reason."""


def new_cache(model: nn.Module, slack: int) -> RewindableCache:
    """A fresh cache that takes up to `slack` tokens back at once. Raises NoWayBack."""
    return rewinding_of(model).cache(slack)


def find_way(model: nn.Module) -> Rewinding:
    """The cheapest way that is exact for a model, found anew; `rewinding_of` remembers it.

    Raises:
        NoWayBack: none is, or there is nothing for one to agree with: single steps see other tokens than whole passes.
    """
    try:
        shown, wanted = _widest_window(model)
    except _UNFIT as error:
        raise NoWayBack(_in_a_line(error)) from None
    if wanted > shown:
        raise NoWayBack(f"a pass over several tokens sees {wanted} of them in a layer whose single steps see {shown}")
    if (ring := _ring(model)) is not None:
        raise NoWayBack(f"its {ring} overwrites tokens that would have to be brought back, and no window replaces it")
    reasons = []
    for way in _ways(model):
        try:
            rewinding = Rewinding(model, way, Recorder(model) if way == "local" else None)
            wrong = how_wrong(rewinding)
        except _UNFIT as error:
            reasons.append(f"{way}: {_in_a_line(error)}")
            continue
        if wrong is None:
            return rewinding
        reasons.append(f"{way}: {wrong}")
    raise NoWayBack("; ".join(reasons))


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


rewinding_of = once_per_model(find_way)
"""How a model's caches take tokens back, found when it is first asked. Raises NoWayBack."""


def _ways(model: nn.Module) -> Iterator[Way]:
    if any(map(is_state, leaves_of(rewindable(make_prompt_cache(model), 0)))):
        yield "local"
        yield "eager"
    else:
        yield "trim"


class _Asked(WindowCache):
    """A window that notes the widest mask that its model asks for."""

    asked = 0

    def make_mask(
        self,
        N: int,  # noqa: N803 - mlx-lm's name
        window_size: int | None = None,
        return_array: bool = False,
    ) -> mx.array | str | None:
        """As the window's."""
        self.asked = max(self.asked, window_size or 0)
        return super().make_mask(N, window_size, return_array)


def _widest_window(model: nn.Module) -> tuple[int, int]:
    """Of the window whose model asks for most beyond it: tokens that it holds, and that a whole pass would see."""
    caches = rewindable(make_prompt_cache(model), 0)
    windows = [leaf for leaf in leaves_of(caches) if type(leaf) is WindowCache]
    for window in windows:
        window.__class__ = _Asked
    model(mx.array([[0, 1]]), cache=caches)  # asks for masks at once, and computes nothing
    found = [(window.max_size, window.asked) for window in windows]
    return max(found, key=lambda sizes: sizes[1] - sizes[0], default=(0, 0))


def _ring(model: nn.Module) -> str | None:
    """The name of a cache of bounded size that writes over its oldest tokens and is none of `windows`, if there is one.

    Until it is full it can be trimmed, so trying it on a short text would show nothing.
    """
    leaves = leaves_of(rewindable(make_prompt_cache(model), 0))
    rings = (leaf for leaf in leaves if hasattr(leaf, "max_size") and not isinstance(leaf, WindowCache))
    return next((type(leaf).__name__ for leaf in rings), None)


def how_wrong(rewinding: Rewinding) -> str | None:
    """What is off with the logits after taking tokens back; None where they are those of mlx-lm's single steps."""
    model, rng = rewinding.model, random.Random(0)
    logits = read_whole(model, mx.array([[0]]))
    width, rounds = int(logits.shape[-1]), logits.dtype != mx.float32
    for vocabulary in (min(_TOKENS, width), min(2, width)):  # a varied text, and hardly one
        off = [
            _off(rewinding, [rng.randrange(vocabulary) for _ in range(_PREFIX + _PASS + _AFTER)], rounds=rounds)
            for _ in range(_TEXTS if rounds else 1)
        ]
        if all(off):
            return f"logits are off by {min(off):.2g} standard deviations"
    return None


def _off(rewinding: Rewinding, tokens: list[int], *, rounds: bool) -> float:
    """By how many standard deviations the logits are off after taking back tokens of a text; 0 where they are exact.

    Args:
        rewinding: the way.
        tokens: the text.
        rounds: whether passes of this model may differ by more than float32's rounding.
    """
    model, kept = rewinding.model, _PREFIX + _PASS - _BACK
    prefix, tail = tokens[:_PREFIX], tokens[_PREFIX + _PASS :]
    expected = by_single_steps(model, prefix, tokens[_PREFIX:kept] + tail)[-_AFTER:]

    def after(back: int) -> mx.array:
        cache = rewinding.cache(_PASS)
        cache.prefill(mx.array(prefix, mx.uint32), _PREFIX)
        cache.read(mx.array(tokens[_PREFIX : kept + back], mx.uint32))
        cache.rewind(back)
        return cache.read(mx.array(tail, mx.uint32))

    scale, same, taken_back = spread_of_logits(expected), after(0), after(_BACK)
    allowed = min(max(_LEAST * scale, _TIMES * _difference(same, expected)), _MOST * scale)
    off = _difference(taken_back, expected)
    if rounds:
        off = min(off, _difference(taken_back, same))
    return 0.0 if off <= allowed else off / scale


def by_single_steps(model: nn.Module, prefix: Sequence[int], tokens: Sequence[int]) -> mx.array:
    """Logits (N, V) after each of the tokens, each in a step of its own over a cache of mlx-lm's."""
    cache = make_prompt_cache(model)
    model(mx.array([list(prefix)]), cache=cache)
    mx.eval([layer.state for layer in cache])  # so the logits are never computed
    return mx.concatenate([model(mx.array([[token]]), cache=cache)[0] for token in tokens])


def _difference(one: mx.array, other: mx.array) -> float:
    return float(mx.abs(comparable(one) - comparable(other)).max().item())


def comparable(logits: mx.array) -> mx.array:
    """In float32, and 0 for a token that a draft must not propose: its logit is minus infinity, always."""
    return mx.where(logits == -mx.inf, 0.0, logits.astype(mx.float32))


def spread_of_logits(logits: mx.array) -> float:
    """Their standard deviation, of tokens that may be proposed: the zeros of `comparable` would make it another one."""
    may = logits != -mx.inf
    count, values = may.sum(), comparable(logits)
    off = mx.where(may, values - values.sum() / count, 0.0)
    return float(mx.sqrt(mx.square(off).sum() / count).item())
