"""Odd text: lone surrogates, invalid UTF-8, NUL, BOM, right to left. Ids and record come back, without a traceback.

A case goes the whole way: bytes of a prompts file -> prompt -> ids -> record -> line of the log -> record -> text.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders import NO_SYNC, make_record
from fault_table import Row

from draftloop.config import Models
from draftloop.data.log import FailureLog
from draftloop.errors import PromptError
from draftloop.models.pair import Pair
from draftloop.prompts.files import PromptFile, survey_files
from draftloop.prompts.prompt import Prompt, Unusable, encode_prompt
from draftloop.prompts.text_lines import encoding

pytestmark = pytest.mark.row("odd text")

A_BATCH = 250  # cases of one file
SURROGATES = re.compile("[\ud800-\udfff]")
PIECES = (
    *("\ud800", "\udfff", "\udc80", "\ud83d", "\ud83d\udc69"),  # lone surrogates, and a pair of lone ones
    *("\0", "\x01", "\x1b[31m", "\x7f", "\x85", "\u2028", "\u2029", "\r", "\t", "\v", "\f"),
    *("\ufeff", "\ufffe", "\uffff", "\ufffd", "\u200b", "\u200d", "\u00ad", "\u2060"),
    *("\u202e", "\u202c", "\u2066", "\u2069", "\u200f", "שלום", "مرحبا", "\u0627\u0651\u0670"),
    *(
        "e\u0301",
        "\u0301\u0302\u0303",
        "\U0001f469\u200d\U0001f680",
        "\U0001f1ee\U0001f1f8",
        "\U0010ffff",
        "\U000e0041",
    ),
    *("<|endoftext|>", "<|end|>", "<s>", "</s>", "{{ 7*7 }}", "{% raw %}", "%s", "\\ud800", "\\", '"', "'", "`", "$("),
    *("ß", "İ", "ǆ", "ﬁ", "ⅷ", "Ａ", "\u3000", "\u00a0", "汉字", "ไทย", "a", "B", " ", "7", "\n"),
)


def odd(choose: random.Random) -> str:
    """One to twenty pieces, a letter among them: a prompt of spaces alone is none."""
    pieces = [choose.choice(PIECES) for _ in range(choose.randint(0, 19))]
    if choose.random() < 0.3:
        pieces += [chr(choose.randrange(0x110000)) for _ in range(choose.randint(1, 8))]
    pieces.insert(choose.randint(0, len(pieces)), "x")
    return "".join(pieces)


def written(texts: list[str], path: Path, choose: random.Random) -> list[str]:
    """Put prompts into a file, not all of which can be; returns what a reader should find there."""
    if path.suffix == ".jsonl":
        lines = [json.dumps({"prompt": text}, ensure_ascii=choose.random() < 0.5 or _lone(text)) for text in texts]
        damaged = [_damaged(line.encode(), choose) for line in lines]
        path.write_bytes(b"\xef\xbb\xbf" + b"\n".join(damaged))
        whole = [text for text, line, raw in zip(texts, lines, damaged, strict=True) if raw == line.encode()]
        return [SURROGATE_PAIR.sub(lambda found: _joined(found[0]), text) for text in whole if "\0" not in text]
    kept = [SURROGATES.sub("\ufffd", text).replace("\0", "").replace("\n", " ") for text in texts]
    path.write_bytes("\n".join(kept).encode(choose.choice(["utf-8-sig", "utf-16", "utf-32"])))
    split = [line for text in kept for line in re.split("\r", text)]
    return [line for line in (line.removeprefix("\ufeff") for line in split) if line.strip()]


SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")


def _joined(pair: str) -> str:
    """JSON writes a pair of surrogates for one character, and so reads it."""
    return pair.encode("utf-16", "surrogatepass").decode("utf-16")


def _lone(text: str) -> bool:
    return SURROGATES.search(text) is not None


def _damaged(line: bytes, choose: random.Random) -> bytes:
    """Now and then with a byte that is no UTF-8 where it stands."""
    if choose.random() < 0.9:
        return line
    at = choose.randint(0, len(line))
    return line[:at] + choose.choice([b"\xff", b"\xfe\xff", b"\xc0", b"\xed\xa0\x80", b"\xf8\x88"]) + line[at:]


def test_the_ids_and_the_record_of_any_text_come_back(tmp_path: Path, embedded_pair: Pair, row: Row) -> None:
    choose, cases = random.Random(6), row.count(500, 10_000)
    tokenizer = embedded_pair.tokenizer
    for batch in range(0, cases, A_BATCH):
        path = tmp_path / f"{batch}{choose.choice(['.txt', '.jsonl'])}"
        expected = written([odd(choose) for _ in range(A_BATCH)], path, choose)
        prompts = [found for found in PromptFile(path) if isinstance(found, Prompt)]
        log = FailureLog(tmp_path / f"{batch}.log", NO_SYNC)
        assert [prompt.text for prompt in prompts] == expected
        appended = []
        for prompt in prompts:
            ids = encode_prompt(prompt, tokenizer, chat_template=True, max_length=2000)
            assert not isinstance(ids, Unusable)
            assert tokenizer.decode(ids) == SURROGATES.sub("\ufffd", prompt.text)
            assert encode_prompt(Prompt(tokenizer.decode(ids)), tokenizer, chat_template=True, max_length=2000) == ids
            appended.append(log.append(make_record(prompt=prompt.text, prompt_tokens=tuple(ids), source=path.name)))
        assert list(log.records()) == appended
        assert log.damage == []
    row.did(cases, "texts")


def test_a_text_file_with_one_bad_byte_is_refused_and_its_line_is_named(tmp_path: Path, row: Row) -> None:
    choose, files = random.Random(7), row.count(30, 300)
    path = tmp_path / "p.txt"
    for _ in range(files):
        written([odd(choose) for _ in range(choose.randint(1, 30))], path, choose)
        lines = path.read_bytes().decode(encoding(path.read_bytes()[:4])).encode().split(b"\n")
        place = choose.randrange(len(lines))
        number = 1 + len(re.findall(rb"\r\n|\r|\n", b"".join(line + b"\n" for line in lines[:place])))
        lines[place] = choose.choice([b"\xff", b"\0", b"\xc3("]) + lines[place]
        path.write_bytes(b"\n".join(lines))
        with pytest.raises(PromptError, match=rf"^{re.escape(str(path))}, line {number}: it "):
            survey_files([PromptFile(path)])
    row.did(files, "text files with one bad byte")


def test_odd_text_in_a_line_of_the_command_is_collected(
    tmp_path: Path, small_models: Models, command: Callable[..., Any], row: Row
) -> None:
    """As a shell hands it over: bytes that are no UTF-8 are lone surrogates in Python."""
    texts = ["caf\udce9", "\u202eשלום\u202c", "\ufeffx", "a\ud800b", "\x1b[31mred", "<|end|>"]
    flags = [word for text in texts for word in ("-p", text)]
    models = ["--model", small_models.target, "--draft-model", small_models.draft]
    said = command("--data-dir", tmp_path, "collect-data", *flags, "--max-tokens", "4", "--json", *models)
    assert said.code == 0, said.err
    assert json.loads(said.out)["generations"] == len(texts)
    assert [record.prompt for record in FailureLog(tmp_path / "failures" / "failures.jsonl").records()] == texts
    row.did(1, "command lines")
