"""Requests under way at once get the answers that each would get alone, whatever joins, leaves or fails beside them."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
import zoo
from builders import failing_files
from engine_client import Client, answer_of
from mlx_lm.generate import generate_step
from mlx_lm.tokenizer_utils import TokenizerWrapper

from draftloop.caches import leaves_of
from draftloop.config import Models, Speculative
from draftloop.data.log import FailureLog
from draftloop.data.records import Record
from draftloop.data.teacher_blobs import BlobFile
from draftloop.decoding import teacher_forced
from draftloop.decoding.decoder import Round
from draftloop.decoding.generation import Generation
from draftloop.decoding.offline_rounds import simulate_rounds
from draftloop.decoding.plain_batch import PlainBatch
from draftloop.errors import PairError
from draftloop.models.pair import Pair, load_pair
from draftloop.serving.api_error import ApiError
from draftloop.serving.capture import Capture
from draftloop.serving.engine import Capacity, Engine, Full
from draftloop.serving.events import Ended, Event, NewText
from draftloop.serving.job import Job
from draftloop.serving.metrics import Metrics
from draftloop.serving.room import LEAST_OPEN, Room
from draftloop.serving.served import Served
from draftloop.serving.tempo import Tempo
from draftloop.serving.text_stream import TextStream
from draftloop.store.files import FILES, Files

PROMPTS = (
    "def read_file(path):\n    ",
    "The function returns the number of",
    "class Queue:\n    def __init__(self",
    "If the argument is omitted, the",
    "for i in range(",
)


@pytest.fixture(scope="module")
def pair() -> Pair:
    return load_pair(Models())


def run(
    pair: Pair,
    work: Callable[[Client], None],
    limits: Capacity | None = None,
    prefill: int = 512,
    capture: Capture | None = None,
    room: Room | None = None,
    reads: bool = True,
) -> Engine:
    """Run an engine here, as long as the client works in a thread of its own."""
    client: Client
    failed: list[BaseException] = []

    def works() -> None:
        try:
            work(client)
        except BaseException as error:  # noqa: BLE001 - it is raised again, on the test's own thread
            failed.append(error)
        finally:
            client.engine.stop(30)

    served = Served(pair, Speculative(prefill_step_size=prefill), {}, "rejection", room)
    ended: list[Job] = []

    def on_output(job: Job) -> None:
        ended.append(job)
        if capture is not None:
            capture.offer(job)

    engine = Engine(
        lambda: served,
        limits or Capacity(8, 16, 64 << 20),
        on_output,
        when_idle=capture.work if capture is not None and reads else lambda: False,
        metrics=Metrics(),
        wants=(lambda _job: False) if capture is None else capture.wants,
    )
    client = Client(engine, pair, ended)
    thread = threading.Thread(target=works)
    thread.start()
    try:
        engine.run()
    finally:
        thread.join()
    if failed:
        raise failed[0]
    return engine


def by_mlx_lm(pair: Pair, text: str, length: int) -> str:
    tokens = [
        int(token) for token, _ in generate_step(mx.array(pair.tokenizer.encode(text)), pair.target, max_tokens=length)
    ]
    stop = next((i for i, token in enumerate(tokens) if token in pair.stop_tokens), len(tokens))
    detokenizer = pair.tokenizer.detokenizer
    for token in [*pair.tokenizer.encode(text)[-8:], *tokens[:stop]]:
        detokenizer.add_token(token)
    detokenizer.finalize()
    return str(detokenizer.text)


@pytest.mark.parametrize("drafts", [0, 3])
@pytest.mark.some(1)
def test_greedy_answers_at_once_are_those_of_mlx_lm_alone(pair: Pair, drafts: int | None) -> None:
    def work(client: Client) -> None:
        waiting = [client.ask(text, num_draft_tokens=drafts, length=30 + 10 * i)[1] for i, text in enumerate(PROMPTS)]
        for i, (text, events) in enumerate(zip(PROMPTS, waiting, strict=True)):
            found, end = answer_of(events)
            assert by_mlx_lm(pair, text, 30 + 10 * i).endswith(found)
            assert len(found) > 20
            assert end.accepted <= end.drafted
            assert (end.drafted > 0) == (drafts != 0)

    run(pair, work)


def test_a_sampled_answer_depends_on_its_seed_and_on_nothing_beside_it(pair: Pair) -> None:
    def work(client: Client) -> None:
        how = {"temperature": 0.9, "seed": 7, "num_draft_tokens": 0}
        alone = client.answer(PROMPTS[0], **how)[0]
        others = [client.ask(text, temperature=1.0)[1] for text in PROMPTS[1:]]
        assert client.answer(PROMPTS[0], **how)[0] == alone
        assert client.answer(PROMPTS[0], **how | {"seed": 8})[0] != alone
        for events in others:
            answer_of(events)

    run(pair, work)


def test_a_client_that_goes_away_ends_its_decoding_within_a_round(pair: Pair) -> None:
    def work(client: Client) -> None:
        job, events = client.ask(PROMPTS[0], length=400)
        events.get(timeout=60)
        job.cancelled.set()
        _, end = answer_of(events)
        assert end.finish == "cancelled"
        assert end.tokens < 200
        assert client.engine.counts == (0, 0)

    run(pair, work)


def test_what_is_beyond_the_queue_is_refused_and_what_waits_is_answered(pair: Pair) -> None:
    def work(client: Client) -> None:
        taken: list[queue.Queue[Event]] = []

        def ask_until_full() -> None:
            while len(taken) < 50:
                taken.append(client.ask(PROMPTS[0], length=60)[1])

        with pytest.raises(Full):
            ask_until_full()
        assert len(taken) >= 3
        assert {answer_of(events)[1].tokens for events in taken} == {60}

    run(pair, work, Capacity(1, 2, 0))


def test_what_does_not_fit_into_memory_waits_and_what_never_fits_is_refused(pair: Pair) -> None:
    prompt = max(len(pair.tokenizer.encode(text)) for text in PROMPTS)
    room = Room.of(pair, Room.of(pair, 0, 1).bytes_of(prompt, 60) * 2.5, 8)  # two requests at a time
    most = 0

    def work(client: Client) -> None:
        nonlocal most
        waiting = [client.ask(text, length=60)[1] for text in PROMPTS]
        with pytest.raises(ApiError, match="MB of memory"):
            client.answer(PROMPTS[0], length=1000)
        for events in waiting:
            while not isinstance(event := events.get(timeout=60), Ended):
                assert isinstance(event, NewText)
                most = max(most, client.engine.counts[0])
            assert event.tokens == 60
        _, end = client.answer(PROMPTS[0], max_tokens=None)  # its length is left open, and as much as fits
        assert 100 < end.tokens < LEAST_OPEN
        assert 0 < client.engine.prefixes.nbytes <= room.left(0)

    run(pair, work, room=room)
    assert most == 2


def test_a_stop_string_ends_the_output_and_is_left_out(pair: Pair) -> None:
    def work(client: Client) -> None:
        whole, _ = client.answer(PROMPTS[0])
        stop = whole[10:14]
        found, end = client.answer(PROMPTS[0], stop=(stop,))
        assert found == whole[: whole.index(stop)]
        assert end.finish == "stop"
        job = client.ended[-1]
        assert sum(len(round_.tokens) for round_ in job.work.rounds) == len(job.work.output) == end.tokens
        assert stop in pair.tokenizer.decode(job.work.output)
        assert stop not in pair.tokenizer.decode(job.work.output[:-1])

    run(pair, work)


def test_a_second_turn_reads_what_is_new_alone_and_answers_as_without_a_cache(pair: Pair) -> None:
    def work(client: Client) -> None:
        first = " ".join(PROMPTS)
        answer, _ = client.answer(first)
        second = first + answer + " and then"
        _, end = client.answer(second)
        found, again = client.answer(second, owner="somebody else")
        assert end.cached_tokens >= len(pair.tokenizer.encode(first)) - 1
        assert again.cached_tokens == 0
        assert client.answer(second)[0] == found
        assert by_mlx_lm(pair, second, 40).endswith(found)

    run(pair, work)


def test_requests_that_do_not_fit_are_refused_and_the_others_go_on(pair: Pair) -> None:
    def work(client: Client) -> None:
        with pytest.raises(ApiError, match="positions"):
            client.answer("word " * 3000)
        assert client.answer(PROMPTS[0])[1].tokens == 40

    run(pair, work)


def test_penalties_and_log_probabilities_reach_the_decoder(pair: Pair) -> None:
    def work(client: Client) -> None:
        from draftloop.decoding.penalties import Penalties

        plain = client.answer(PROMPTS[0])[0]
        assert client.answer(PROMPTS[0], penalties=Penalties(repetition=1.8))[0] != plain
        events = client.ask(PROMPTS[0], top_logprobs=2)[1]
        named = []
        while isinstance(event := events.get(timeout=60), NewText):
            assert len(event.logprobs) == len(event.piece.tokens)
            named += event.logprobs
        assert len(named) == 40
        assert all(len(one.top) == 2 and one.top[0] == (one.token, one.logprob) for one in named)  # it is greedy

    run(pair, work)


def test_a_failure_to_load_reaches_whoever_waits(pair: Pair) -> None:
    def fails() -> Served:
        raise PairError("no such pair")

    engine = Engine(fails, Capacity(1, 1, 0), lambda _job: None, when_idle=lambda: False, metrics=Metrics())
    client = Client(engine, pair)
    _, events = client.ask(PROMPTS[0])
    with pytest.raises(PairError):
        engine.run()
    with pytest.raises(ApiError, match="has failed"):
        answer_of(events)
    with pytest.raises(ApiError, match="stopping"):
        client.ask(PROMPTS[0])


def test_a_server_that_stops_lets_answers_finish_and_then_cuts_them(pair: Pair) -> None:
    finished: list[str] = []

    def patient(client: Client) -> None:
        events = client.ask(PROMPTS[0], length=50)[1]
        client.engine.stop(60)
        finished.append(answer_of(events)[1].finish)

    def impatient(client: Client) -> None:
        events = client.ask(PROMPTS[0], length=400)[1]
        events.get(timeout=60)
        client.engine.stop(0)
        finished.append(answer_of(events)[1].finish)

    run(pair, patient)
    run(pair, impatient)
    assert finished == ["length", "cancelled"]


def hybrid() -> Pair:
    """Both models have recurrent states, whose caches cannot be trimmed."""
    found = zoo.pair("qwen3_5")
    return replace(found, tokenizer=TokenizerWrapper(found.tokenizer))


def test_a_hybrid_pair_answers_from_a_cache_as_without_one() -> None:
    pair = hybrid()
    words = tuple(i % 90 for i in range(40))

    def work(client: Client) -> None:
        first, end = client.answer(words, length=80, num_draft_tokens=0)  # the draft lacks all of it
        again, cached = client.answer(words, length=80, num_draft_tokens=3)
        alone, _ = client.answer(words, length=80, num_draft_tokens=3, owner="somebody else")
        assert cached.cached_tokens > 20
        assert end.tokens == cached.tokens == 80
        assert first == again == alone

    run(pair, work)


def test_batches_and_drafts_that_catch_up_take_turns_and_no_answer_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ways change every few steps, in the middle of what a draft has to read too."""
    steps = itertools.count()
    monkeypatch.setattr(Tempo, "choose", lambda _tempo, _count: "batch" if next(steps) % 45 > 4 else "turns")
    pair = hybrid()
    prompts = [tuple((7 * i + j) % 90 for j in range(20 + 5 * i)) for i in range(4)]

    def work(client: Client) -> None:
        alone = [client.answer(text, length=150, owner=str(i), num_draft_tokens=0)[0] for i, text in enumerate(prompts)]
        waiting = [client.ask(text, length=150, num_draft_tokens=3)[1] for text in prompts]
        assert [answer_of(events)[0] for events in waiting] == alone
        for job in client.ended[len(prompts) :]:  # whatever the draft read in between, it is what was emitted
            cache, lacks = job.work.decoding.draft_cache
            if cache is not None:
                offset = max(leaf.offset for leaf in leaves_of(cache.layers) if hasattr(leaf, "offset"))
                assert offset == len(job.tokens) + len(job.work.emitted) - lacks

    run(pair, work, prefill=8)


def test_what_goes_wrong_with_one_request_ends_that_one_alone(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    take = Job.take

    def fails(job: Job, round_: Round) -> int:
        if job.source == "broken":
            raise IndexError("whatever")
        if job.source == "large":
            raise RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory")
        return take(job, round_)

    monkeypatch.setattr(Job, "take", fails)

    def work(client: Client) -> None:
        waiting = [client.ask(text, length=60, num_draft_tokens=0)[1] for text in PROMPTS[:2]]
        for source, status in (("broken", 500), ("large", 503)):
            with pytest.raises(ApiError) as found:
                answer_of(client.ask(PROMPTS[2], source=source)[1])
            assert found.value.status == status
        assert [answer_of(events)[1].tokens for events in waiting] == [60, 60]

    run(pair, work)


def test_a_request_that_fails_in_a_batch_leaves_the_others_in_it_alone(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = Job.take

    def fails(job: Job, round_: Round) -> int:
        if job.source == "breaks" and len(job.work.output) == 20:
            raise IndexError("whatever")
        return take(job, round_)

    monkeypatch.setattr(Job, "take", fails)
    monkeypatch.setattr(Tempo, "choose", lambda _tempo, _count: "batch")

    def work(client: Client) -> None:
        alone = [client.answer(text, owner="alone")[0] for text in PROMPTS[:2]]
        waiting = [client.ask(text)[1] for text in PROMPTS[:2]]
        breaks = client.ask(PROMPTS[2], source="breaks")[1]
        assert [answer_of(events)[0] for events in waiting] == alone
        with pytest.raises(ApiError, match="the server failed at this request"):
            answer_of(breaks)

    run(pair, work)


def test_an_output_whose_cache_was_lost_with_its_batch_is_not_kept(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_batch: PlainBatch) -> None:
        raise RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory")

    monkeypatch.setattr(PlainBatch, "release", fails)
    monkeypatch.setattr(Tempo, "choose", lambda _tempo, _count: "batch")

    def work(client: Client) -> None:
        first, other = client.ask(PROMPTS[0], length=30)[1], client.ask(PROMPTS[1], length=60)[1]
        answer, end = answer_of(first)
        assert end.tokens == 30
        with pytest.raises(ApiError, match="does not fit into memory"):
            answer_of(other)
        second = PROMPTS[0] + answer + " and then"
        found, again = client.answer(second)
        assert again.cached_tokens == 0
        assert by_mlx_lm(pair, second, 40).endswith(found)

    run(pair, work)


def test_a_stop_string_that_is_complete_only_with_what_was_held_back_ends_it_too(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that ends in half a character, where the limit on tokens cut the other half."""
    finish = TextStream.finish

    def completes(stream: TextStream) -> Any:
        piece = finish(stream)
        stream.stopped = True
        return piece

    monkeypatch.setattr(TextStream, "finish", completes)
    run(pair, lambda client: _ended_by_stop(client.answer(PROMPTS[0], stop=("never",))[1]))


def _ended_by_stop(end: Ended) -> None:
    assert end.finish == "stop"


# what is captured


def captured(
    pair: Pair, folder: Path, work: Callable[[Client], None], files: Files = FILES
) -> tuple[list[Record], str]:
    """The records that a client leaves, and the metrics."""
    metrics = Metrics()
    log = FailureLog(folder / "failures" / "failures.jsonl", files)
    capture = Capture(log, BlobFile(folder / "failures" / "teacher.bin", files), metrics, 1.0, 3)
    run(pair, work, capture=capture)
    capture.close()
    return list(FailureLog(log.path).records()), metrics.render().decode()


def test_records_have_the_rounds_that_happened_and_others_are_simulated(pair: Pair, tmp_path: Path) -> None:
    def work(client: Client) -> None:
        client.answer(PROMPTS[0], num_draft_tokens=3, temperature=0.8, seed=5)
        client.answer(PROMPTS[1], num_draft_tokens=0)
        job, events = client.ask(PROMPTS[2], num_draft_tokens=3, length=400)
        events.get(timeout=60)
        job.cancelled.set()
        answer_of(events)

    live, plain, cut = sorted(captured(pair, tmp_path, work)[0], key=lambda record: PROMPTS.index(record.prompt))
    assert (live.simulated, live.finish, live.sampler.seed) == (False, "length", 5)
    assert (plain.simulated, plain.num_draft_tokens) == (True, 3)
    assert any(drafted for drafted, _ in plain.rounds)
    assert (cut.finish, cut.simulated) == ("cancelled", False)
    for record in (live, plain, cut):
        assert sum(accepted for _, accepted in record.rounds) + len(record.rounds) >= len(record.target_output)
        assert len(record.draft_output) == len(record.log_q) == len(record.target_output)


def test_an_output_that_cannot_be_read_for_its_record_costs_no_answer_and_no_other_record(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = iter([RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory"), IndexError("whatever")])

    def simulates(*given: Any, **named: Any) -> Iterator[tuple[int, Generation]]:
        for error in fails:
            raise error
        return simulate_rounds(*given, **named)

    monkeypatch.setattr("draftloop.serving.capture.simulate_rounds", simulates)

    def work(client: Client) -> None:
        for text in PROMPTS[:3]:
            assert client.answer(text, num_draft_tokens=0)[1].tokens == 40

    found, metrics = captured(pair, tmp_path, work)
    assert [record.prompt for record in found] == [PROMPTS[2]]
    assert 'records_dropped_total{reason="unusable"} 2.0' in metrics


def test_a_request_interrupts_the_reading_of_a_long_output_which_is_begun_anew(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_forced, "BATCH_BYTES", 1)
    monkeypatch.setattr(teacher_forced, "PART", 4)
    log = FailureLog(tmp_path / "failures.jsonl")
    capture = Capture(log, BlobFile(tmp_path / "teacher.bin"), Metrics(), 1.0, 3)

    def work(client: Client) -> None:
        client.answer(PROMPTS[0], num_draft_tokens=0)

    run(pair, work, capture=capture, reads=False)
    looks: list[bool] = []

    def is_wanted() -> bool:
        looks.append(len(looks) == 1)
        return looks[-1]

    assert capture.work(is_wanted)
    assert looks == [False, True]  # it gave way at the second part
    assert list(FailureLog(log.path).records()) == []
    assert capture.work()
    assert not capture.work()
    capture.close()
    (record,) = FailureLog(log.path).records()
    assert (record.prompt, record.simulated) == (PROMPTS[0], True)


def test_what_goes_wrong_after_records_were_written_keeps_no_later_one_from_the_log(pair: Pair, tmp_path: Path) -> None:
    metrics, log = Metrics(), FailureLog(tmp_path / "failures.jsonl")
    written = threading.Semaphore(0)

    def fails() -> None:
        written.release()
        raise OSError("too many open files")

    capture = Capture(log, BlobFile(tmp_path / "teacher.bin"), metrics, 1.0, 3, fails)

    def work(client: Client) -> None:
        for text in PROMPTS[:2]:
            client.answer(text, num_draft_tokens=3)
            assert written.acquire(timeout=60)

    run(pair, work, capture=capture)
    capture.close()
    assert [record.prompt for record in FailureLog(log.path).records()] == list(PROMPTS[:2])


def test_a_disk_that_is_full_costs_records_and_no_answer(pair: Pair, tmp_path: Path) -> None:
    def work(client: Client) -> None:
        assert client.answer(PROMPTS[0], num_draft_tokens=3)[1].tokens == 40
        assert client.answer(PROMPTS[1], num_draft_tokens=3)[1].tokens == 40

    found, metrics = captured(pair, tmp_path, work, failing_files(3, for_good=True))
    assert found == []
    assert 'records_dropped_total{reason="write_failed"} 2.0' in metrics
