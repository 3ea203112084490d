"""Writers and a reader at the same log for minutes: nothing is read torn, and what was acknowledged is there."""

from __future__ import annotations

import json
import mmap
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import NO_SYNC, make_record
from fault_table import Row
from mortal import HANGS, environment, has_ended, python
from shop import PROMPTS
from tiny import tiny_pair

from draftloop.config import Config, Models
from draftloop.data.log import FailureLog
from draftloop.data.records import Record
from draftloop.data.replay import ReplayBuffer
from draftloop.training.dataset.mixture import gather

pytestmark = pytest.mark.row("collect while training")

WRITERS = 3

WRITER = """
import mmap, struct, sys
from pathlib import Path
from builders import make_record
from draftloop.data.log import FailureLog

log, counts, number, records = FailureLog(Path(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
with counts.open("r+b") as file:
    acknowledged = mmap.mmap(file.fileno(), 0)
for i in range(records):
    prompt = f"{number} " + chr(0x4E00 + i) * (i * 37 % 2000)
    log.append(make_record(id=f"{number:016x}{i:016x}", prompt=prompt))
    struct.pack_into("q", acknowledged, 8 * number, i + 1)
"""


class Counts:
    """How many records each writer has had acknowledged, in shared memory."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(8 * WRITERS))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)

    def now(self) -> tuple[int, ...]:
        return struct.unpack(f"{WRITERS}q", self._memory[:])


def by_writer(records: list[Record]) -> Counter[int]:
    """How many records of each writer there are, which are its first ones, in their order."""
    found: Counter[int] = Counter()
    for record in records:
        writer, number = int(record.id[:16], 16), int(record.id[16:], 16)
        assert number == found[writer], "a record was lost, doubled or overtaken"
        found[writer] += 1
    return found


def write_and_read(folder: Path, records: int, row: Row) -> None:
    """One log, from its first record to its last."""
    folder.mkdir()
    path, counts = folder / "failures.jsonl", Counts(folder / "counts")
    pair = replace(tiny_pair(64), identity=make_record().pair)
    log, replay = FailureLog(path), ReplayBuffer(folder / "replay", 100, NO_SYNC)
    log.append(make_record(id="f" * 32))
    with ExitStack() as stack:
        commands = [python("-c", WRITER, path, folder / "counts", number, records) for number in range(WRITERS)]
        writers = [stack.enter_context(subprocess.Popen(command, env=environment())) for command in commands]
        while any(writer.poll() is None for writer in writers):
            before = counts.now()
            _, *found = log.records()
            assert log.damage == []
            assert all(by_writer(found)[writer] >= before[writer] for writer in range(WRITERS)), "acknowledged, unread"
            material = gather(log, replay, pair, Config())
            assert (material.damaged_lines, material.left_out) == ((), Counter())
            row.did(2, "reads")
    assert [writer.returncode for writer in writers] == [0] * WRITERS
    _, *found = log.records()
    assert by_writer(found) == Counter(dict.fromkeys(range(WRITERS), records))
    assert not path.with_name("failures.jsonl.broken").exists()
    row.did(WRITERS * records, "records written meanwhile")


def test_a_reader_among_writers_reads_nothing_torn_and_misses_nothing_acknowledged(tmp_path: Path, row: Row) -> None:
    began, rounds = time.monotonic(), 0
    while rounds == 0 or (row.full and time.monotonic() < began + 120):
        write_and_read(tmp_path / str(rounds), row.count(20, 1000), row)
        rounds += 1
    row.notes.append(f"{WRITERS} writers and a reader for {time.monotonic() - began:.0f} s: 0 torn, 0 lost")


def test_a_real_training_while_generations_are_collected(
    tmp_path: Path, small_models: Models, command: Callable[..., Any], row: Row
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": prompt.text}) for prompt in PROMPTS[: row.count(16, 100)]))
    log = FailureLog(tmp_path / "data" / "failures" / "failures.jsonl")
    models = ["--model", small_models.target, "--draft-model", small_models.draft]
    common = ["-m", "draftloop", "--data-dir", tmp_path / "data"]
    collecting = python(*common, "collect-data", "--prompts-file", prompts, "--max-tokens", 24, "--json", *models)
    with subprocess.Popen(
        collecting, env=environment(), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as collector:
        deadline = time.monotonic() + HANGS
        while sum(record.is_failure for record in log.records()) < 5 and time.monotonic() < deadline:
            if has_ended(collector):
                break
        trained = command("--data-dir", tmp_path / "data", "train", "--epochs", "1", "--rank", "2", "--json", *models)
        out, _ = collector.communicate(timeout=HANGS)
    assert (trained.code, collector.returncode) == (0, 0), trained.err
    assert json.loads(out)["generations"] == len(list(log.records())) == len(prompts.read_text().splitlines())
    assert log.damage == []
    row.did(1, "trainings while collecting")
