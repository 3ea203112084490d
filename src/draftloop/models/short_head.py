"""A draft's head over some of the tokens; all others have a logit of minus infinity. Knows no choice of tokens.

    hidden states (..., D) -> the head's n rows, adapter included -> (..., n) -> logits (..., V)

The head's rows are a copy, n of V; the model's own arrays are as they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_unflatten

from ..errors import PairError
from .adapter import HeadParts, head_parts
from .draft_vocabulary import FILE, DraftVocabulary
from .head import find_head

_PLAIN = (nn.Linear, nn.QuantizedLinear, nn.Embedding, nn.QuantizedEmbedding)


def place_of_head(model: nn.Module) -> str | None:
    """The dotted name of a head that can be shortened; None where the model has none.

    That is one whose output is the logits: what a model does behind it, such as a cap, would move minus infinity. And
    it is a layer of MLX's own: one that a model made for itself may do more than multiply with its rows.
    """
    head = find_head(model)
    if head is None or not head.is_last or type(head_parts(head.module()).bare) not in _PLAIN:
        return None
    return ".".join(head.path)


@contextmanager
def shortened(model: nn.Module, vocabulary: DraftVocabulary | None) -> Iterator[None]:
    """Within the block the model's logits are those of its vocabulary; afterwards it is what it was."""
    before = shorten(model, vocabulary)
    try:
        yield
    finally:
        model.update_modules(tree_unflatten(before))


def shorten(model: nn.Module, vocabulary: DraftVocabulary | None) -> list[tuple[str, nn.Module]]:
    """The same for good.

    Args:
        model: with or without an adapter, merged or not; one that is shortened already stays as it is.
        vocabulary: None, and a whole one, change nothing.

    Returns:
        The head that there was before, by its name; nothing where nothing was changed.

    Raises:
        PairError: the head is not where it was when the vocabulary was chosen.
    """
    if vocabulary is None or vocabulary.is_whole:
        return []
    whole = dict(model.named_modules()).get(vocabulary.head)
    if whole is None:
        raise PairError(
            f"{FILE} says that the draft's head is {vocabulary.head}, and it has no layer of that name; was mlx-lm "
            f"changed? Then delete {FILE} in the data directory: which tokens the draft may propose is chosen anew"
        )
    if isinstance(whole, _ShortLinear | _ShortEmbedding):
        return []
    kind = _ShortEmbedding if hasattr(whole, "as_linear") else _ShortLinear
    short = kind(whole, vocabulary.tokens)
    mx.eval(short.parameters())
    model.update_modules(tree_unflatten([(vocabulary.head, short)]))
    return [(vocabulary.head, whole)]


class _Rows(nn.Module):  # type: ignore[misc]  # MLX has no types
    """Some outputs of a head, put where they belong among all."""

    def __init__(self, parts: HeadParts, tokens: Sequence[int], count: int) -> None:
        super().__init__()
        chosen = mx.array(tokens, mx.int32)
        bare = parts.bare
        self.weight = bare.weight[chosen]  # (n, D), or packed
        self._quantization = None
        if "scales" in bare:
            self.scales = bare.scales[chosen]
            self.quantization_biases = bare.biases[chosen] if bare.get("biases") is not None else None
            self._quantization = {"group_size": bare.group_size, "bits": bare.bits, "mode": bare.mode}
        self.bias = bare.bias[chosen] if "bias" in bare else None
        self.a = self.b = None
        if parts.a is not None and parts.b is not None:
            a, b = parts.a, parts.b[:, chosen]
            if self.weight.dtype == mx.float32 and self._quantization is None:
                self.weight = self.weight + (a @ b).T
            else:
                self.a, self.b = a, b
        places = np.full(count, len(tokens), np.int32)
        places[np.array(tokens)] = np.arange(len(tokens))
        self._places = mx.array(places)

    def __call__(self, x: mx.array) -> mx.array:
        """(..., D) to (..., V)."""
        if self._quantization is None:
            logits = x @ self.weight.T
        else:
            logits = mx.quantized_matmul(
                x, self.weight, scales=self.scales, biases=self.quantization_biases, **self._quantization
            )
        if self.bias is not None:
            logits = logits + self.bias
        if self.a is not None:
            logits = logits + ((x @ self.a) @ self.b).astype(logits.dtype)
        nothing = mx.full((*logits.shape[:-1], 1), -mx.inf, logits.dtype)
        return mx.take(mx.concatenate([logits, nothing], axis=-1), self._places, axis=-1)


class _ShortLinear(nn.Module):  # type: ignore[misc]
    """In place of a head that is a layer of its own."""

    def __init__(self, whole: nn.Module, tokens: Sequence[int]) -> None:
        super().__init__()
        parts = head_parts(whole)
        self.rows = _Rows(parts, tokens, parts.bare.weight.shape[0])

    def __call__(self, x: mx.array) -> mx.array:
        return self.rows(x)


class _ShortEmbedding(nn.Module):  # type: ignore[misc]
    """In place of an embedding that is the head too: tokens are embedded as before."""

    def __init__(self, whole: nn.Module, tokens: Sequence[int]) -> None:
        super().__init__()
        parts = head_parts(whole)
        self.whole, self.rows = whole, _Rows(parts, tokens, parts.bare.weight.shape[0])

    def __call__(self, x: mx.array) -> mx.array:
        return self.whole(x)

    def as_linear(self, x: mx.array) -> mx.array:
        """The logits after hidden states."""
        return self.rows(x)
