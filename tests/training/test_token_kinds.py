"""Every token has one kind, whatever the tokenizer, by what it spells where it stands."""

from __future__ import annotations

from functools import cache
from typing import get_args

import pytest
from model_dirs import tokenizer_json
from tiny import word_tokenizer
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from draftloop.models.pair import Pair
from draftloop.training.token_kinds import Kind, TokenKinds, kind_of

PIECES = ["▁hello", "hello", "▁", "▁▁▁▁", "\n", "9", "▁9", ".", "▁(", "é", "▁_x"]


@cache
def sentencepiece_like() -> PreTrainedTokenizerFast:
    """Llama's decoder: ▁ is a blank, the one at the beginning of a text is dropped, bytes fall back to <0x..>."""
    names = ["<unk>", "</s>", "<pad>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>")


def spelled(tokenizer: PreTrainedTokenizerFast, *pieces: str, before: tuple[str, ...] = ()) -> list[str]:
    ids = [tokenizer.convert_tokens_to_ids(list(some)) for some in (before, pieces)]
    return TokenKinds(tokenizer, {tokenizer.eos_token_id}).of(*ids)


@pytest.mark.parametrize(
    ("text", "before", "kind"),
    [
        (" the", ".", "word start"),
        (" the", "a", "word start"),
        ("the", "", "word start"),
        ("the", "(", "word start"),
        ("the", "a", "inside a word"),
        ("the", "1", "inside a word"),
        ("the", "_", "inside a word"),
        ("_", "f", "inside a word"),
        (" _x", " ", "word start"),
        ("ा", "क", "inside a word"),  # a mark that goes on a letter
        ("ß", "\n", "word start"),
        ("12", "x", "number"),
        (" 12", "x", "number"),
        ("½", " ", "number"),
        (".", "a", "punctuation"),
        ("',", "a", "punctuation"),
        (" —", "a", "punctuation"),
        ("-", "a", "punctuation"),
        ("。", "字", "punctuation"),
        ("):", "a", "bracket or symbol"),
        (" =", "a", "bracket or symbol"),
        ("**", "a", "bracket or symbol"),
        ("€", "a", "bracket or symbol"),
        ("🙂", " ", "bracket or symbol"),
        ("\x00", "", "bracket or symbol"),
        ("\n", "a", "line break"),
        ("\n    ", ":", "line break"),
        (" \r\n", "a", "line break"),
        ("\n\nthe", "a", "line break"),
        ("):\n", "a", "bracket or symbol"),
        (" ", "a", "space or indent"),
        ("\t\t", "\n", "space or indent"),
        ("\ufffd", "a", "bytes of a character"),
        (" \ufffd", "a", "bytes of a character"),
        ("", "a", "special"),
    ],
)
def test_a_text_has_the_kind_of_its_first_visible_character(text: str, before: str, kind: str) -> None:
    assert kind_of(text, before) == kind
    assert kind in get_args(Kind)
    assert len(get_args(Kind)) <= 10


def test_the_embedded_tokenizer_s_pieces(embedded_pair: Pair) -> None:
    text = "def read(self):\n    return 42 and seldom, né 日 x"
    ids = embedded_pair.tokenizer.encode(text)
    kinds = TokenKinds(embedded_pair.tokenizer, embedded_pair.stop_tokens)
    assert "".join(map(kinds.text, ids)).replace("\ufffd", "") == text.replace("é", "").replace("日", "")
    found = list(zip(map(kinds.text, ids), kinds.of([], ids), strict=True))
    assert found[0] == ("def", "word start")
    assert ("(", "bracket or symbol") in found
    assert ("\n   ", "line break") in found
    assert (" return", "word start") in found
    assert ("\ufffd", "bytes of a character") in found
    assert found[-1] == (" x", "word start")
    assert kinds.of(ids, sorted(embedded_pair.stop_tokens)) == ["end of text"]


def test_every_id_of_the_embedded_pair_has_a_kind(embedded_pair: Pair) -> None:
    ids = range(embedded_pair.width + 3)  # ids that no token has are logits that fill a model up
    found = TokenKinds(embedded_pair.tokenizer, embedded_pair.stop_tokens).of([], ids)
    assert set(found) == set(get_args(Kind))
    assert found[-1] == "special"


def test_a_byte_level_tokenizer() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer_json()), eos_token="<|end|>")
    assert spelled(tokenizer, "Ġtarget", "s", "Ġ", "1", "Ċ", "Ã", "<|end|>") == [
        "word start",
        "inside a word",
        "space or indent",
        "number",
        "line break",
        "bytes of a character",
        "end of text",
    ]


def test_a_sentencepiece_tokenizer_whose_decoder_drops_the_first_blank() -> None:
    tokenizer = sentencepiece_like()
    pieces = ["▁hello", "hello", ".", "hello", "▁", "▁▁▁▁", "9", "▁9", "▁(", "▁_x", "<0x0A>", "<0xE2>", "<pad>", "</s>"]
    assert spelled(tokenizer, *pieces) == [
        "word start",
        "inside a word",
        "punctuation",
        "word start",
        "space or indent",
        "space or indent",
        "number",
        "number",
        "bracket or symbol",
        "word start",
        "line break",
        "bytes of a character",
        "special",
        "end of text",
    ]


def test_a_word_tokenizer() -> None:
    assert TokenKinds(word_tokenizer(64), ()).of([], [1, 2, 3, 4]) == ["word start"] * 2 + ["inside a word", "number"]


def test_what_stands_before_an_output_counts() -> None:
    tokenizer = sentencepiece_like()
    assert spelled(tokenizer, "hello", before=("▁hello",)) == ["inside a word"]
    assert spelled(tokenizer, "hello", before=(".",)) == ["word start"]


def test_a_character_that_was_spelled_in_bytes_is_put_together() -> None:
    tokenizer = sentencepiece_like()
    letter, dash = ("<0xC3>", "<0xA9>"), ("<0xE2>", "<0x80>", "<0x94>")  # é, —
    assert spelled(tokenizer, "hello", before=("▁hello", *letter)) == ["inside a word"]
    assert spelled(tokenizer, "hello", before=("▁hello", *dash)) == ["word start"]


def test_an_id_is_decoded_once() -> None:
    class Counting:
        all_special_ids = ()
        calls = 0

        def decode(self, ids: list[int], **_options: bool) -> str:
            self.calls += 1
            return "a" * len(ids)

    tokenizer = Counting()
    assert TokenKinds(tokenizer, ()).of([], [7, 7, 7, 7]) == ["word start", *["inside a word"] * 3]
    assert tokenizer.calls == 2
