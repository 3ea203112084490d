"""Pieces of text are the text: with every kind of detokenizer, however tokens come in runs, up to a stop string."""

from __future__ import annotations

import copy
import string
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mlx_lm.tokenizer_utils import (
    BPEStreamingDetokenizer,
    NaiveStreamingDetokenizer,
    SPMStreamingDetokenizer,
    StreamingDetokenizer,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from draftloop.serving.text_stream import TextPiece, TextStream, first_of, held_back

WORDS = ["the", " the", " a", "ST", "OP", "xST", " STOP", "b\n", " b", "é", "世"]
KINDS = ["bytes", "pieces", "decoded"]


@cache
def byte_level() -> Any:
    """A token for each byte, and some for words."""
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [spell.pre_tokenize_str(word)[0][0] for word in WORDS]
    vocabulary = {token: place for place, token in enumerate(dict.fromkeys([*words, *alphabet]))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = spell, decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


@cache
def with_byte_fallback() -> Any:
    """SentencePiece's kind: words and letters, and a token for each byte."""
    pieces = [word.replace(" ", "▁") for word in WORDS] + ["▁", *string.ascii_letters]
    vocabulary = {token: i for i, token in enumerate([*pieces, *(f"<0x{byte:02X}>" for byte in range(256))])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


@cache
def made(kind: str) -> StreamingDetokenizer:
    if kind == "pieces":
        return SPMStreamingDetokenizer(with_byte_fallback())
    return (BPEStreamingDetokenizer if kind == "bytes" else NaiveStreamingDetokenizer)(byte_level())


def detokenizer(kind: str) -> StreamingDetokenizer:
    """A new one, as mlx-lm's tokenizers hand them out."""
    return copy.copy(made(kind))


def whole(kind: str, tokens: Sequence[int]) -> str:
    """The text of tokens that all have come."""
    detok = detokenizer(kind)
    detok.reset()
    for token in tokens:
        detok.add_token(token)
    detok.finalize()
    return detok.text


def spelled(kind: str, text: str) -> list[int]:
    """Tokens of a text: the words that there are, else bytes."""
    vocabulary = (with_byte_fallback() if kind == "pieces" else byte_level()).get_vocab()
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokens: list[int] = []
    while text:
        word = next((word for word in sorted(WORDS, key=len, reverse=True) if text.startswith(word)), text[0])
        name = word.replace(" ", "▁") if kind == "pieces" else spell.pre_tokenize_str(word)[0][0]
        if kind == "pieces" and name not in vocabulary:
            tokens += [vocabulary[f"<0x{byte:02X}>"] for byte in word.encode()]
        else:
            tokens += [vocabulary[name]] if name in vocabulary else [vocabulary[char] for char in name]
        text = text[len(word) :]
    return tokens


def streamed(kind: str, runs: Sequence[Sequence[int]], stops: Sequence[str] = ()) -> tuple[TextStream, list[TextPiece]]:
    stream = TextStream(detokenizer(kind), stops)
    pieces = []
    for run in runs:
        pieces.append(stream.push(run))
        if stream.stopped:
            break
    return stream, [*pieces, stream.finish()]


def in_runs(tokens: Sequence[int], sizes: Sequence[int]) -> list[Sequence[int]]:
    runs, start = [], 0
    for size in sizes:
        runs.append(tokens[start : start + size])
        start += size
    return [*runs, tokens[start:]]


texts = st.text(st.sampled_from([*"ab STOPx\n.,", "é", "世", "🦙"]), max_size=14)
stop_strings = st.lists(st.text(st.sampled_from([*"abSTOP x", "é", "🦙"]), min_size=1, max_size=5), max_size=4)
outputs = st.lists(texts | st.sampled_from(WORDS) | st.binary(min_size=1, max_size=3), max_size=6)


def tokens_of(kind: str, output: Sequence[str | bytes]) -> list[int]:
    """Of texts, and of bytes that need not be one."""
    tokens: list[int] = []
    names = (with_byte_fallback() if kind == "pieces" else byte_level()).get_vocab()
    alphabet = byte_names()
    for part in output:
        if isinstance(part, str):
            tokens += spelled(kind, part)
        else:
            tokens += [names[f"<0x{byte:02X}>" if kind == "pieces" else alphabet[byte]] for byte in part]
    return tokens


@cache
def byte_names() -> dict[int, str]:
    """How byte-level tokens write each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + place) for place, byte in enumerate(others)}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=300, deadline=None)
@given(output=outputs, stops=stop_strings, sizes=st.lists(st.integers(0, 9), max_size=12))
@example(output=["a STOP b"], stops=["STOP"], sizes=[1])
@example(output=["ab", b"\xf0\x9f", b"\xa6\x99x"], stops=["x"], sizes=[2, 1, 1])
@example(output=["ab", b"\xf0\x9f", b"\xa6\x99x"], stops=["b🦙"], sizes=[2, 1, 1])
@example(output=["xSTOP"], stops=["TO", "STO"], sizes=[])
def test_pieces_are_the_text_up_to_the_first_stop_string(
    kind: str, output: list[str | bytes], stops: list[str], sizes: list[int]
) -> None:
    tokens = tokens_of(kind, output)
    text = whole(kind, tokens)
    # The obvious way: with all of the text, look where a stop string is first complete.
    ends = [(end, end - len(stop)) for end in range(len(text) + 1) for stop in stops if text[:end].endswith(stop)]
    cut = min(ends)[1] if ends else None
    starts = [len(whole(kind, tokens[:place]).rstrip("\ufffd")) for place in range(len(tokens))]
    kept = [place for place, start in enumerate(starts) if cut is None or start < cut]

    stream, pieces = streamed(kind, in_runs(tokens, sizes), stops)

    assert stream.stopped == (cut is not None)
    assert "".join(piece.text for piece in pieces) == text[:cut]
    assert [token for piece in pieces for token in piece.tokens] == [tokens[place] for place in kept]
    assert [offset for piece in pieces for offset in piece.offsets] == [starts[place] for place in kept]
    counts = [len(piece.tokens) for piece in pieces]
    assert [piece.start for piece in pieces] == [sum(counts[:place]) for place in range(len(counts))]


@pytest.mark.parametrize("kind", KINDS)
def test_a_character_comes_when_its_last_byte_does(kind: str) -> None:
    stream = TextStream(detokenizer(kind))
    llama = tokens_of(kind, ["🦙".encode()])
    pieces = [stream.push([token]) for token in llama]
    assert [piece.text for piece in pieces] == ["", "", "", "🦙"]
    assert pieces[-1].tokens == tuple(llama)
    assert pieces[-1].offsets == (0, 0, 0, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_what_may_begin_a_stop_string_is_held_back_and_nothing_else_is(kind: str) -> None:
    stream = TextStream(detokenizer(kind), ["STOP"])
    seen = [stream.push(spelled(kind, part)).text for part in ("a", "b", "ST", "ST", "a")]
    assert seen == ["a", "b", "", "ST", "STa"]
    assert stream.push(spelled(kind, "ST")).text == ""
    assert stream.finish().text == "ST"
    assert not stream.stopped


@pytest.mark.parametrize("kind", KINDS)
def test_a_stop_string_in_the_middle_of_a_run_ends_it(kind: str) -> None:
    stream = TextStream(detokenizer(kind), ["STOP"])
    run = spelled(kind, "the STOP the STOP")
    piece = stream.push(run)
    assert (piece.text, stream.stopped) == ("the ", True)
    assert run[: len(piece.tokens)] == list(piece.tokens)
    assert whole(kind, piece.tokens).startswith("the ")
    assert stream.push(spelled(kind, "a")) == stream.finish() == TextPiece("", len(piece.tokens), (), ())


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_that_is_cut_by_a_stop_string_stays_and_one_of_it_alone_goes(kind: str) -> None:
    stream = TextStream(detokenizer(kind), ["STOP"])
    x_st, op = spelled(kind, "xST"), spelled(kind, "OP")
    piece = stream.push([*x_st, *op])
    assert (piece.text, list(piece.tokens)) == ("x", x_st)
    assert len(x_st) == len(op) == 1


def test_a_space_that_is_a_token_of_its_own_stays_before_a_stop_string() -> None:
    """The detokenizer holds it until the next token: both are seen at once, and only one of them goes."""
    stream = TextStream(detokenizer("bytes"), ["ST"])
    the, space, stop = spelled("bytes", "the"), spelled("bytes", " "), spelled("bytes", "ST")
    assert [stream.push(run).text for run in (the, space, stop)] == ["the", "", " "]
    assert stream.stopped
    stream = TextStream(detokenizer("bytes"), ["ST"])
    assert list(stream.push([*the, *space, *stop]).tokens) == [*the, *space]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("before", ["a", "x the", "x ", "x  ", "é"])
@pytest.mark.parametrize("output", [" the", "the", " ", " a b"])
def test_a_continuation_keeps_the_space_that_it_begins_with(kind: str, before: str, output: str) -> None:
    prompt, tokens = spelled(kind, before), spelled(kind, output)
    stream = TextStream(detokenizer(kind), before=prompt)
    pieces = [*(stream.push([token]) for token in tokens), stream.finish()]
    assert "".join(piece.text for piece in pieces) == output
    assert pieces[0].start == 0
    offsets = [offset for piece in pieces for offset in piece.offsets]
    assert offsets == [len(whole(kind, [*prompt, *tokens[:n]])) - len(before) for n in range(len(tokens))]


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_without_the_prompt_a_text_begins_without_its_space(kind: str) -> None:
    _, pieces = streamed(kind, [spelled(kind, " the")])
    assert "".join(piece.text for piece in pieces) == "the"


@pytest.mark.parametrize(
    ("strings", "text", "wanted"),
    [
        (["b"], "abab", (1, 2)),
        (["abc", "b"], "abc", (1, 2)),
        (["bc", "abc"], "xabc", (1, 4)),
        (["x"], "abc", None),
        ([], "abc", None),
    ],
)
def test_the_string_that_is_complete_first_is_the_first(
    strings: list[str], text: str, wanted: tuple[int, int] | None
) -> None:
    assert first_of(strings, text) == wanted


@pytest.mark.parametrize(
    ("text", "strings", "wanted"),
    [("ab", ["bc"], 1), ("aab", ["aabb", "b!"], 3), ("ab", ["x"], 0), ("", ["x"], 0), ("aa", ["aaa"], 2)],
)
def test_the_longest_beginning_is_held_back(text: str, strings: list[str], wanted: int) -> None:
    assert held_back(text, strings) == wanted
