"""The champion changes again and again while four clients ask: no request fails, every answer is plain mlx-lm's."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from clients import COMPLETIONS, ask, metric, metrics, until
from fault_table import Row
from log_files import read_captured
from mlx_lm import stream_generate
from near_ties import FLOAT32
from server import Server
from shop import WORDS, Shop

from draftloop.config import Config, Models
from draftloop.data_directory import DataDirectory
from draftloop.models.pair import Pair, load_pair
from draftloop.retraining.by_hand import promote_by_hand

pytestmark = [pytest.mark.row("swaps under load"), pytest.mark.usefixtures("module_on_the_cpu")]

CLIENTS = 4
VERSIONS = 3
NOISE = 0.05  # of the versions' weights: each draft proposes something else
ON_THE_CPU = """
from draftloop import prepare_process
prepare_process()
import mlx.core as mx
mx.set_default_device(mx.cpu)
"""


@dataclass(frozen=True)
class Answer:
    """What plain mlx-lm makes of a prompt: the tokens, and their text."""

    tokens: tuple[int, ...]
    text: str


def plain_answers(pair: Pair) -> dict[str, Answer]:
    """By prompt; one that comes to a near tie is left out, for there another batch may round to another token."""
    answers = {}
    for number, words in enumerate(product(WORDS[:6], WORDS[6:])):
        prompt, length = " ".join(words), 12 + number
        steps = list(stream_generate(pair.target, pair.tokenizer, pair.tokenizer.encode(prompt), max_tokens=length))
        best = np.array([np.sort(np.array(step.logprobs))[:-3:-1] for step in steps])  # (tokens, 2)
        if (best[:, 0] - best[:, 1]).min() > FLOAT32:
            answers[prompt] = Answer(tuple(step.token for step in steps), "".join(step.text for step in steps))
    return answers


@dataclass
class Clients:
    """Those who ask one greedy prompt after another.

    Attributes:
        plain: what they may ask, and what must come.
        answered: prompts, one for each answer.
        failed: what else came, or nothing.
        differ: prompts whose answer was another one.
    """

    server: Server
    plain: Mapping[str, Answer]
    answered: list[str] = field(default_factory=list)
    failed: list[object] = field(default_factory=list)
    differ: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def go_on(self) -> None:
        """Wait for so many answers that some of them began after the last swap."""
        enough = len(self.answered) + 2 * CLIENTS
        until(lambda: bool(self.failed) or len(self.answered) >= enough, "answers")

    def ask_on(self, number: int) -> None:
        """One of them, until it is over."""
        choose, prompts = random.Random(number), list(self.plain)
        while not self.over.is_set():
            prompt = choose.choice(prompts)
            wanted = self.plain[prompt]
            fields = {"prompt": prompt, "max_tokens": len(wanted.tokens), "temperature": 0}
            try:
                reply = ask(self.server, COMPLETIONS, fields)
            except (OSError, HTTPException) as error:
                self.failed.append(error)
                continue
            if reply.status != 200:
                self.failed.append(reply)
                continue
            self.answered.append(prompt)
            if reply.text.lstrip(" ") != wanted.text.lstrip(" "):  # mlx-lm's stream drops the first space
                self.differ.append(prompt)


@contextmanager
def asking(clients: Clients) -> Iterator[None]:
    threads = [threading.Thread(target=clients.ask_on, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        clients.over.set()
        for thread in threads:
            thread.join()


def swap(shop: Shop, server: Server, version: str | None, row: Row) -> None:
    """Move the pointer, as `adapters promote` does, and wait for the server to follow."""
    promote_by_hand(shop.data, shop.config, version, "by hand")
    began = time.monotonic()
    until(lambda: f'version="{version or "base"}"' in metrics(server), f"{version} in use")
    row.times["from a move of the pointer to requests with that draft"].append(time.monotonic() - began)


def is_written_down(server: Server) -> bool:
    """Whether each answer has a record, or has been counted as one without."""
    recorded = metric(server, "records_captured_total") + metric(server, "records_dropped_total")
    return recorded == metric(server, "request_success_total")


@pytest.mark.parametrize("at_once", [1, CLIENTS])  # decoded in turn, each with the draft; or together, often as a batch
def test_no_request_fails_and_no_answer_differs_while_the_champion_changes(
    tmp_path: Path, patient_models: Models, row: Row, at_once: int
) -> None:
    swaps, choose = row.count(2, 25), random.Random(at_once)
    shop = Shop(DataDirectory(tmp_path), Config(models=patient_models))
    drafts = [None, *(shop.add_version(NOISE, seed) for seed in range(VERSIONS))]
    plain = plain_answers(load_pair(patient_models))
    assert len(plain) > CLIENTS
    flags = ("--model", patient_models.target, "--draft-model", patient_models.draft, "--num-draft-tokens", "3")
    with Server(tmp_path, *flags, "--max-concurrent", str(at_once), prelude=ON_THE_CPU) as server:
        clients, used = Clients(server, plain), [drafts[0]]
        with asking(clients):
            for _ in range(swaps):
                clients.go_on()
                used.append(choose.choice([draft for draft in drafts if draft != used[-1]]))
                swap(shop, server, used[-1], row)
            clients.go_on()
        assert (clients.failed, clients.differ) == ([], [])
        assert sum("requests begin with" in line for line in server.said) == swaps
        assert metric(server, "swaps_failed_total") == 0
        assert metric(server, "spec_decode_num_draft_tokens_total") > 0
        until(lambda: is_written_down(server), "the records")
        assert server.stop() == 0
    records = read_captured(tmp_path)
    adapters = {record.adapter for record in records}
    if at_once == 1:
        assert adapters == set(used)
    assert adapters <= set(used)  # of a batch the draft reads the outputs when nobody asks, and not all of so many
    assert all(record.target_output == plain[record.prompt].tokens for record in records)
    row.did(swaps, "swaps")
    row.did(len(clients.answered), "answers meanwhile")
