"""Texts written side by side are the ones that each would be by itself."""

from __future__ import annotations

import gc
import weakref

import mlx.core as mx
import numpy as np
import pytest
from chance import FITS, p_value
from mlx_lm.generate import BatchGenerator
from mlx_lm.models.cache import BatchKVCache, ChunkedKVCache, RotatingKVCache
from tiny import sampler, tiny_llama

from draftloop.decoding import batched_generation as side_by_side
from draftloop.decoding import prompt_caches
from draftloop.decoding.batch_probe import batches_exactly
from draftloop.decoding.batched_generation import MOST_ROWS, NoRoom, OutputRequest, _rows, generate_batched
from draftloop.decoding.sampling_filters import sampling_probs

MODEL = tiny_llama()
STOP = frozenset({7})


def wanted(count: int, temperature: float = 0.9, most: int = 12) -> list[OutputRequest]:
    return [OutputRequest((1 + i % 5, *range(2, 3 + i % 4)), sampler(temperature, seed=i), most) for i in range(count)]


def written(texts: list[OutputRequest], model: object = MODEL, **how: object) -> dict[int, tuple[int, ...]]:
    found = generate_batched(model, texts, **{"width": 60, "stop_tokens": STOP, **how})  # type: ignore[arg-type]
    return {text.place: text.tokens for text in found}


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_every_text_is_what_it_is_alone_in_any_order_and_company(temperature: float) -> None:
    texts = wanted(20, temperature)
    together = written(texts)
    assert together.keys() == set(range(20))
    assert written(texts[::-1]) == {19 - i: tokens for i, tokens in together.items()}
    for i in (0, 7, 13):
        assert written([texts[i]]) == {0: together[i]}
    assert len({tuple(tokens) for tokens in together.values()}) > (3 if temperature else 1)


def test_prompts_of_one_id_samplers_of_several_kinds_and_rows_that_are_free_early_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = [
        OutputRequest((1 + i, *range(2, 2 + i % 4)), sampler((0.9, 0.0, 0.7)[i % 3], seed=i), (12, 1, 5)[i % 4 % 3])
        for i in range(24)
    ]
    alone = {i: written([one])[0] for i, one in enumerate(texts)}
    for rows in (3, 8, 64):
        monkeypatch.setattr(side_by_side, "MOST_ROWS", rows)
        assert written(texts) == alone
        with monkeypatch.context() as patched:  # as on a GPU
            patched.setattr(side_by_side, "_several", lambda rows: max(1, rows // 4))
            assert written(texts) == alone
            patched.setattr(prompt_caches, "are_plain", lambda _: False)  # mlx-lm reads the prompts
            assert written(texts) == alone
        with monkeypatch.context() as patched:
            patched.setattr(prompt_caches, "are_plain", lambda _: False)
            assert written(texts) == alone


def test_what_a_text_was_drawn_from_is_kept_where_it_fits() -> None:
    how = {"width": 60, "stop_tokens": STOP}
    texts = [OutputRequest(one.prompt, sampler(0.9, top_p=0.8, seed=i), 12) for i, one in enumerate(wanted(20))]
    needed = 2 * 4 * 60 * 20 * 12
    for found in generate_batched(MODEL, texts, p_bytes=needed, **how):
        ids = [*texts[found.place].prompt, *found.tokens]
        logits = MODEL(mx.array([ids[:-1]]))[0, len(texts[found.place].prompt) - 1 :]
        assert mx.allclose(found.p, sampling_probs(logits, texts[found.place].sampler, 60), atol=1e-5)
    for found in generate_batched(MODEL, texts, p_bytes=needed - 1, **how):
        assert found.p is None


def test_a_text_ends_at_a_stop_token_or_its_length_and_has_no_id_beyond_the_width() -> None:
    for tokens in written(wanted(80)).values():
        assert len(tokens) == (tokens.index(7) + 1 if 7 in tokens else 12)
        assert max(tokens) < 60


def test_texts_are_drawn_from_the_distribution_of_the_sampler() -> None:
    how, count = sampler(0.9, top_p=0.8), 4_000
    texts = [OutputRequest((5, 6), sampler(0.9, top_p=0.8, seed=i), 1) for i in range(count)]
    observed = np.bincount([tokens[0] for tokens in written(texts).values()], minlength=60)
    assert p_value(observed, np.array(sampling_probs(MODEL(mx.array([[5, 6]]))[0, -1], how, 60))) > FITS


class Refusing:
    """The model in a memory for so many rows."""

    def __init__(self, rows: int, error: Exception) -> None:
        self.rows, self.error, self.tried = rows, error, []
        self.layers = MODEL.layers

    def __call__(self, inputs: mx.array, cache: object = None) -> mx.array:
        self.tried.append(inputs.shape[0])
        if inputs.shape[0] > self.rows:
            raise type(self.error)(*self.error.args)  # one of its own: it remembers whose frames it passed
        return MODEL(inputs, cache=cache)


@pytest.mark.usefixtures("on_the_cpu")  # where rows begin and end together
def test_where_memory_is_refused_the_same_texts_are_written_in_smaller_batches() -> None:
    model = Refusing(3, RuntimeError("[metal::malloc] Unable to allocate 9 bytes."))
    assert written(wanted(20), model) == written(wanted(20))
    refused = [rows for rows in model.tried if rows > 3]
    assert refused == sorted(set(refused), reverse=True)  # none is tried twice
    assert refused[0] == 20


def test_memory_that_is_refused_in_the_middle_costs_no_finished_text() -> None:
    class Later(Refusing):
        def __call__(self, inputs: mx.array, cache: object = None) -> mx.array:
            if len(self.tried) == 11:  # after the two that show what a row takes
                self.rows = 3
            return super().__call__(inputs, cache)

    def later() -> Later:
        model = Later(20, RuntimeError("[metal::malloc] Unable to allocate 9 bytes."))
        assert batches_exactly(model)  # type: ignore[arg-type]
        prompt_caches.row_bytes(model).of(1)  # type: ignore[arg-type]
        model.tried.clear()
        return model

    model = later()
    texts = [OutputRequest(one.prompt, one.sampler, 3 + 12 * (i % 2)) for i, one in enumerate(wanted(20))]
    found = [text.place for text in generate_batched(model, texts, width=60, stop_tokens=STOP)]  # type: ignore[arg-type]
    assert sorted(found) == list(range(20))
    assert written(texts, later()) == written(texts)
    assert max(model.tried[10:]) <= 10  # of those that were missing


@pytest.mark.usefixtures("on_the_cpu")  # where rows begin and end together
def test_caches_have_room_for_what_is_written_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths, fetch = set(), BatchKVCache.update_and_fetch

    def fetched(cache: BatchKVCache, keys: mx.array, values: mx.array) -> object:
        found = fetch(cache, keys, values)
        lengths.add(cache.keys.shape[2])
        return found

    monkeypatch.setattr(BatchKVCache, "update_and_fetch", fetched)
    texts = wanted(20)
    assert max(len(tokens) for tokens in written(texts).values()) == 12
    assert lengths == {max(len(one.prompt) for one in texts) + 12}


def test_where_not_even_one_fits_it_says_so() -> None:
    class Never(Refusing):
        def __call__(self, inputs: mx.array, cache: object = None) -> mx.array:
            if len(self.tried) > 1:  # two passes show what a row takes
                raise self.error
            return super().__call__(inputs, cache)

    with pytest.raises(NoRoom, match="a single output does not fit into memory"):
        written(wanted(3), Never(1, MemoryError("bad_alloc")))


def test_another_error_is_not_taken_for_a_want_of_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        written(wanted(3), Refusing(1, RuntimeError("[matmul] shapes do not match")))


def test_when_it_is_enough_those_in_work_are_dropped_and_finished_ones_are_there() -> None:
    asked: list[int] = []
    some = written(wanted(MOST_ROWS * 2), enough=lambda: asked.append(1) or len(asked) > 16)
    whole = written(wanted(MOST_ROWS * 2))
    assert 0 < len(some) < len(whole)
    assert all(whole[i] == tokens for i, tokens in some.items())


def test_as_many_are_written_side_by_side_as_there_is_room_for() -> None:
    per_token = 2 * 2 * 2 * 16 * 4  # layers, keys and values, heads, width of a head, bytes
    of_100 = [OutputRequest((1,) * 60, sampler(0.9), 40), *[OutputRequest((1,) * 10, sampler(0.9), 20)] * MOST_ROWS]
    assert _rows(MODEL, of_100[:7], float("inf")) == 7
    assert _rows(MODEL, of_100, float("inf")) == MOST_ROWS
    assert _rows(MODEL, of_100, 5.5 * 100 * per_token) == 5
    assert _rows(MODEL, of_100, 0.0) == 1
    long = [OutputRequest((1,) * 1_000, sampler(0.9), 24)] * MOST_ROWS
    assert _rows(MODEL, long, float("inf")) == 32  # so many tokens


def test_a_batch_is_gone_when_it_ends_without_waiting_for_a_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[weakref.ref[object]] = []
    made = BatchGenerator.__init__

    def watched(self: BatchGenerator, *given: object, **how: object) -> None:
        batches.append(weakref.ref(self))
        made(self, *given, **how)

    monkeypatch.setattr(BatchGenerator, "__init__", watched)
    gc.disable()
    try:
        written(wanted(6), Refusing(3, RuntimeError("[metal::malloc] Unable to allocate 9 bytes.")))
        next(generate_batched(MODEL, wanted(6), width=60, stop_tokens=STOP))
        assert len(batches) > 2
        assert [batch() for batch in batches] == [None] * len(batches)
    finally:
        gc.enable()


class Chunked:
    """The model, with caches that cannot be put side by side."""

    layers = MODEL.layers

    def make_cache(self) -> list[ChunkedKVCache]:
        return [ChunkedKVCache(8192) for _ in self.layers]

    def __call__(self, inputs: mx.array, cache: object = None) -> mx.array:
        assert inputs.shape[0] == 1
        return MODEL(inputs, cache=cache)


def test_a_model_whose_caches_cannot_be_put_side_by_side_writes_the_same_texts_one_after_the_other() -> None:
    texts = wanted(9)
    assert written(texts, Chunked()) == written(texts)
    assert set(written(texts, Chunked(), enough=iter([False] * 20 + [True] * 9).__next__)) < set(range(9))


@pytest.mark.parametrize("model", [MODEL, Chunked()], ids=["side by side", "one by one"])
def test_every_token_is_told_of_when_it_is_written(model: object) -> None:
    told: list[int] = []
    found = generate_batched(model, wanted(9), width=60, stop_tokens=STOP, on_tokens=told.append)  # type: ignore[arg-type]
    first = next(found)
    assert len(told) >= len(first.tokens)  # the steps before the first text was finished
    everything = [first, *found]
    assert sum(told) == sum(len(text.tokens) for text in everything)


def test_a_window_that_the_batch_outgrows_but_no_text_of_it_changes_nothing() -> None:
    class Windowed:
        layers = MODEL.layers

        def make_cache(self) -> list[RotatingKVCache]:
            return [RotatingKVCache(max_size=24) for _ in self.layers]

        def __call__(self, inputs: mx.array, cache: object = None) -> mx.array:
            return MODEL(inputs, cache=cache)

    lengths = [(2, 20), (20, 4), (8, 16), (3, 21), (18, 6)]  # prompt and output; padded, 20 + 21
    texts = [OutputRequest(tuple(range(1, 1 + n)), sampler(0.9, seed=n), most) for n, most in lengths]
    alone = {i: written([one], stop_tokens=frozenset())[0] for i, one in enumerate(texts)}
    assert written(texts, Windowed(), stop_tokens=frozenset()) == alone
