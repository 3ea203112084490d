"""Ten megabytes of text: skipped by the limit before it is tokenized, named, at no memory; refused when alone."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders import NO_SYNC
from fault_table import Row
from mortal import environment, python
from tiny import sampler

from draftloop.collection.collect import CollectSettings, collect_data
from draftloop.config import Models
from draftloop.data.log import FailureLog
from draftloop.decoding.decoder import Settings
from draftloop.errors import PromptError
from draftloop.models.pair import Pair
from draftloop.prompts.prompt import Prompt, Unusable, encode_prompt

pytestmark = pytest.mark.row("huge prompt")

HUGE = 10_000_000
TEXTS: dict[str, Callable[[int], str]] = {
    "one letter": lambda size: "a" * size,
    "words": lambda size: ("lorem ipsum dolor sit amet " * (size // 27 + 1))[:size],
    "another script": lambda size: ("\u05e9\u05dc\u05d5\u05dd " * (size // 5 + 1))[:size],
    "lone surrogates": lambda size: "\ud800" * size,
    "a letter among spaces": lambda size: "a" + " " * (size - 2) + "b",
}
SETTINGS = CollectSettings(Settings(sampler(0.0), "greedy", 2, 4), max_prompt_length=128)


class NeverTokenizes:
    """A real tokenizer that must not be asked for ids."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        if name in ("encode", "apply_chat_template"):
            raise AssertionError("the text was tokenized")
        return getattr(self._tokenizer, name)


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("chat", [False, True])
def test_it_is_skipped_before_it_is_tokenized_and_takes_no_memory(
    name: str, chat: bool, small_pair: Pair, row: Row
) -> None:
    text = TEXTS[name](HUGE)
    prompt = Prompt(text, ({"role": "user", "content": text},) if chat else None)
    tokenizer = NeverTokenizes(small_pair.tokenizer)
    encode_prompt(
        Prompt("x" * 9999), tokenizer, chat_template=chat, max_length=1
    )  # what is counted once is counted here
    tracemalloc.start()
    found = encode_prompt(prompt, tokenizer, chat_template=chat, max_length=2048)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(found, Unusable)
    assert (found.reason, f"{HUGE:,} characters" in found.detail) == ("too long", True)
    assert peak < sys.getsizeof(text) + 100_000  # at most a copy without the spaces around it
    row.did(1, "prompts of 10 MB")


def test_in_a_batch_it_is_named_and_the_others_are_collected(tmp_path: Path, small_pair: Pair, row: Row) -> None:
    prompts = [Prompt("red dog"), Prompt("z" * HUGE), Prompt("blue cat")]
    log = FailureLog(tmp_path / "failures.jsonl", NO_SYNC)
    report = collect_data(small_pair, prompts, log, SETTINGS)
    assert (report.generations, dict(report.skipped)) == (2, {"too long": 1})
    (named,) = map(str, report.skipped_prompts)
    assert named.startswith("prompt 2 ('zzz")
    assert len(named) < 200
    assert [record.prompt for record in log.records()] == ["red dog", "blue cat"]
    row.did(1, "batches with one")


def test_alone_it_is_refused_and_nothing_is_written(tmp_path: Path, small_pair: Pair) -> None:
    log = FailureLog(tmp_path / "data" / "failures.jsonl")
    with pytest.raises(PromptError, match=r"none of 1 prompts was usable: prompt 1 .*10,000,000 characters") as refused:
        collect_data(small_pair, [Prompt("z" * HUGE)], log, SETTINGS)
    assert refused.value.exit_code == 2
    assert not (tmp_path / "data").exists()


MEASURED = """
import resource, sys
from draftloop.cli import run_command

def used():
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024

data, plain, huge, *flags = sys.argv[1:]
for file in (plain, huge):
    code = run_command(["--data-dir", data, "collect-data", "--prompts-file", file, *flags])
    print(f"measured {code} {used()}", file=sys.stderr)
"""


def test_the_command_needs_no_more_memory_than_the_text_itself(tmp_path: Path, small_models: Models, row: Row) -> None:
    for name, texts in (("plain", ["red dog"]), ("huge", ["blue cat", "lorem ipsum " * (HUGE // 12)])):
        lines = [json.dumps({"prompt": text}) for text in texts]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    flags = ["--model", small_models.target, "--draft-model", small_models.draft, "--max-tokens", "4"]
    arguments = [tmp_path / "data", tmp_path / "plain.jsonl", tmp_path / "huge.jsonl", *flags]
    done = subprocess.run(
        python("-c", MEASURED, *arguments), env=environment(), check=False, capture_output=True, text=True
    )
    measured = [line.split()[1:] for line in done.stderr.splitlines() if line.startswith("measured ")]
    (first, plain), (second, huge) = measured
    assert (first, second) == ("0", "0"), done.stderr
    more = int(huge) - int(plain)
    row.notes.append(f"the most memory of a command grew by {more / 1e6:.0f} MB with one in the file")
    assert more < 8 * HUGE  # bytes, lines, text and JSON of it; its ids alone would take ten times that
