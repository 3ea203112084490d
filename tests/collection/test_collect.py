"""Collecting writes what the decoder did, once for each prompt and its conditions, and goes on where it stopped."""

from __future__ import annotations

import hashlib
import math
from dataclasses import astuple, replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from builders import NoSync
from model_dirs import VOCABULARY, add_token, write_llama, write_lora
from stops import StopAfter
from tiny import sampler, tiny_llama

from draftloop.collection import collect
from draftloop.collection.collect import (
    ALREADY_COLLECTED,
    CollectReport,
    CollectSettings,
    collect_data,
    generate_record,
    usable_tokens,
)
from draftloop.collection.record import _content_id
from draftloop.config import Models
from draftloop.data.log import FailureLog
from draftloop.data.records import PairId, Record
from draftloop.data.replay import ReplayBuffer
from draftloop.data.teacher_blobs import BlobFile
from draftloop.data.teacher_top_k import TopK, decode_top_k
from draftloop.decoding import batched_generation as side_by_side
from draftloop.decoding.decoder import Decoding, Round, Settings, VerifiedProposal, count_rounds
from draftloop.decoding.generation import generation_seed
from draftloop.decoding.sampling_filters import sampling_log_probs
from draftloop.errors import ConfigError, PromptError
from draftloop.models.pair import Pair, load_pair
from draftloop.prompts.prompt import Prompt, Unusable

MODES = [("greedy", 0.0), ("rejection", 0.9), ("block", 0.9), ("match", 0.9)]
PROMPTS = [Prompt(text) for text in ("the target", "what the draft wants", "read", "the same text", "learns")]
SHORT = Settings(sampler(0.9), "rejection", 3, 8)


@pytest.fixture
def log(tmp_path: Path) -> FailureLog:
    return FailureLog(tmp_path / "failures.jsonl")


def run(pair: Pair, log: FailureLog, prompts: list[Prompt] = PROMPTS, **changes: object) -> CollectReport:
    return collect_data(pair, prompts, log, replace(CollectSettings(SHORT, chat_template=False), **changes))


def contents(log: FailureLog) -> dict[str, tuple[int, ...]]:
    return {record.prompt: record.target_output for record in log.records()}


# -- the record says what the decoder did -----------------------------------------------------------------------------


def mass(value: float | None) -> float:
    return -math.inf if value is None else value


def rebuilt(record: Record) -> list[tuple[int, tuple[int, ...], int, tuple[VerifiedProposal, ...], float | None]]:
    """Every round of a record, from the record alone: start, tokens, accepted, draws, log p of the bonus token."""
    by_position = {found.position: found for found in record.disagreements}
    rounds, start, length = [], 0, len(record.target_output)
    for drafted, accepted in record.rounds:
        tokens = record.target_output[start : min(start + accepted + 1, length)]
        draws = []
        for at in range(start, start + accepted):
            token = record.target_output[at]
            assert record.draft_output[at] == token
            p, q = mass(record.log_p[at]), mass(record.log_q[at])
            draws.append(VerifiedProposal(token, p, q, token, p, q))
        if accepted < drafted:
            found = by_position.pop(start + accepted)
            assert record.draft_output[found.position] == found.draft_token
            draws.append(
                VerifiedProposal(
                    found.draft_token,
                    mass(found.draft_logp),
                    mass(found.draft_logq),
                    found.target_token,
                    mass(found.target_logp),
                    mass(found.target_logq),
                )
            )
        bonus = mass(record.log_p[start + accepted]) if accepted == drafted and len(tokens) > accepted else None
        rounds.append((start, tokens, accepted, tuple(draws), bonus))
        start += len(tokens)
    assert start == length
    assert not by_position
    return rounds


def events(rounds: list[Round]) -> list[tuple[int, tuple[int, ...], int, tuple[VerifiedProposal, ...], float | None]]:
    return [(found.start, found.tokens, found.accepted, found.verified, found.bonus_log_p) for found in rounds]


@pytest.mark.parametrize(("rule", "temperature"), MODES)
@pytest.mark.parametrize(("count", "top_k"), [(1, 0), (2, 4), (4, 2)])
def test_every_round_rebuilt_from_a_record_is_the_decoders_own(
    rule: str, temperature: float, count: int, top_k: int, small_pair: Pair
) -> None:
    kinds = set()
    for seed, stop in ((1, 0), (2, 0), (3, 40), (4, 200)):
        pair = replace(small_pair, stop_tokens=frozenset(range(stop, stop + 9)))
        settings = Settings(sampler(temperature, top_k=top_k, seed=seed), rule, count, 19)
        ids = [5, 6, 7 + seed]
        record, _ = generate_record(pair, Prompt("x"), ids, CollectSettings(settings))
        again = replace(settings, sampler=replace(settings.sampler, seed=generation_seed(seed, ids)))
        decoding = Decoding(pair, ids, again)
        rounds = list(decoding)
        decoding.complete_bonus_draws()
        assert rebuilt(record) == events(rounds)
        assert {at: (record.draft_output[at], mass(record.log_q[at])) for at in decoding.bonus_draws} == {
            at: (drawn.draft_token, drawn.token_log_q) for at, drawn in decoding.bonus_draws.items()
        }
        assert record.rounds == count_rounds(rounds, len(record.target_output))
        assert (record.finish, record.sampler) == (decoding.finish, again.sampler)
        kinds |= {"refused" if found.bonus_log_p is None else "bonus" for found in rounds} | {record.finish}
    assert "refused" in kinds
    assert "bonus" in kinds or (rule, count) == ("match", 4)  # which accepts four in a row too seldom


def test_the_check_above_catches_a_record_of_another_run(small_pair: Pair) -> None:
    records = [
        generate_record(
            small_pair, Prompt("x"), [5, 6, 7], CollectSettings(replace(SHORT, sampler=sampler(0.9, seed=seed)))
        )[0]
        for seed in (1, 2)
    ]
    assert rebuilt(records[0]) != rebuilt(records[1])


@pytest.mark.parametrize(("rule", "temperature"), MODES)
def test_what_a_record_says_at_every_position_is_what_the_models_say(
    rule: str, temperature: float, small_pair: Pair
) -> None:
    settings = Settings(sampler(temperature, seed=3), rule, 2, 24)
    record, _ = generate_record(small_pair, Prompt("x"), [5, 6, 7], CollectSettings(settings))
    ids = mx.array([[*record.prompt_tokens, *record.target_output[:-1]]])
    rows = [
        np.array(sampling_log_probs(model(ids)[0, 2:], settings.sampler, VOCABULARY))
        for model in (small_pair.target, small_pair.draft)
    ]
    at = np.arange(len(record.target_output))
    for said, table in ((record.log_p, rows[0]), (record.log_q, rows[1])):
        np.testing.assert_allclose([mass(v) for v in said], table[at, record.target_output], atol=1e-4)
    assert np.isfinite(rows[1][at, record.draft_output]).all()  # the draft could have drawn each of its proposals
    if rule == "greedy":
        assert record.draft_output == tuple(rows[1].argmax(axis=-1))


def test_where_the_draft_had_no_turn_stands_what_it_would_have_drawn(small_pair: Pair) -> None:
    """Not what was emitted there: the two differ now and then, and such a place is no disagreement."""
    differ = 0
    for seed in range(4):
        settings = Settings(sampler(0.9, seed=seed), "rejection", 1, 20)
        record, _ = generate_record(small_pair, Prompt("x"), [5, 6, 7], CollectSettings(settings))
        rejected = {found.position for found in record.disagreements}
        pairs = enumerate(zip(record.draft_output, record.target_output, strict=True))
        differ += sum(a != b and at not in rejected for at, (a, b) in pairs)
    assert differ > 3


# -- what the target said, kept beside the records ---------------------------------------------------------------------


@pytest.fixture
def blobs(log: FailureLog) -> BlobFile:
    return BlobFile(log.path.with_name("teacher.bin"))


def kept_of(pair: Pair, settings: Settings, ids: list[int]) -> tuple[Record, TopK]:
    """A record, and the distributions that are kept beside it."""
    record, content = generate_record(pair, Prompt("x"), ids, CollectSettings(settings))
    assert content is not None
    return record, decode_top_k(content)


def assert_said(pair: Pair, record: Record, ids: list[int], rows: TopK) -> None:
    """`rows` are what one teacher-forced pass over `ids` gives for their last positions."""
    logits = pair.target(mx.array([ids]))[0, -len(rows) :]
    truth = np.array(sampling_log_probs(logits, record.sampler, pair.width))
    kept = np.isfinite(rows.log_probs)
    np.testing.assert_allclose(
        rows.log_probs[kept], np.take_along_axis(truth, rows.tokens, axis=1)[kept], atol=1e-4, rtol=0
    )
    np.put_along_axis(truth, np.where(kept, rows.tokens, rows.tokens[:, :1]), -np.inf, axis=1)
    np.testing.assert_allclose(rows.tail, np.exp(truth).sum(axis=1), atol=1e-4)
    assert np.where(kept, -np.inf, 0).max() <= 0
    assert (truth.max(axis=1) <= rows.log_probs[:, -1] + 1e-4).all() or not kept.all()  # none likelier was left out


def check_against_truth(pair: Pair, record: Record, found: TopK) -> None:
    """Every position of the output."""
    assert len(found) == len(record.target_output)
    assert_said(pair, record, [*record.prompt_tokens, *record.target_output[:-1]], found)


@pytest.mark.parametrize(("rule", "temperature"), MODES)
@pytest.mark.parametrize(("count", "top_k"), [(1, 0), (3, 5)])
def test_kept_distributions_are_those_of_a_teacher_forced_pass(
    rule: str, temperature: float, count: int, top_k: int, small_pair: Pair
) -> None:
    rejected, finishes = 0, set()
    for seed, stop in ((1, 0), (2, 40), (3, 200)):
        pair = replace(small_pair, stop_tokens=frozenset(range(stop, stop + 9)))
        settings = Settings(sampler(temperature, top_k=top_k, seed=seed), rule, count, 19, teacher_top_k=8)
        record, found = kept_of(pair, settings, [5, 6, 7 + seed])
        check_against_truth(pair, record, found)
        rejected += len(record.disagreements)
        finishes.add(record.finish)
    assert rejected > 3
    assert "length" in finishes


def test_one_record_and_what_is_kept_beside_it_are_logged_by_one_call(
    small_pair: Pair, log: FailureLog, blobs: BlobFile
) -> None:
    """A compaction that came between the blob and the record would leave the record pointing into a file that went."""
    settings = CollectSettings(replace(SHORT, teacher_top_k=4))
    record, content = generate_record(small_pair, Prompt("x"), [5, 6, 7], settings)
    assert (record.teacher, blobs.files()) == (None, {})
    (logged,) = log.extend([record], blobs, [content])
    assert logged.teacher is not None
    assert blobs.read(logged.teacher) == content


def test_greedy_rows_are_one_hot(small_pair: Pair) -> None:
    record, found = kept_of(small_pair, Settings(sampler(0.0), "greedy", 3, 12, teacher_top_k=32), [5, 6, 7])
    assert found.tokens.tolist() == [[token] for token in record.target_output]
    assert (found.log_probs == 0).all()
    assert (found.tail == 0).all()


def test_the_embedded_pairs_distributions_are_those_of_a_teacher_forced_pass(embedded_pair: Pair) -> None:
    settings = Settings(sampler(0.8), "rejection", 4, 24, teacher_top_k=32)
    record, found = kept_of(embedded_pair, settings, embedded_pair.tokenizer.encode("import os\n"))
    check_against_truth(embedded_pair, record, found)
    assert record.disagreements


def test_a_row_of_another_position_is_no_truth(small_pair: Pair) -> None:
    """The broken version that the tests above must catch."""
    record, found = kept_of(small_pair, replace(SHORT, teacher_top_k=8), [5, 6, 7])
    shifted = TopK(*(np.roll(part, 1, axis=0) for part in (found.tokens, found.log_probs, found.tail)))
    with pytest.raises(AssertionError):
        check_against_truth(small_pair, record, shifted)


def keeping(k: int) -> Settings:
    return replace(SHORT, teacher_top_k=k)


def test_keeping_distributions_changes_neither_records_nor_ids_nor_resuming(
    small_pair: Pair, log: FailureLog, blobs: BlobFile
) -> None:
    def collect(k: int, fresh: bool) -> CollectReport:
        settings = CollectSettings(keeping(k), chat_template=False, fresh=fresh)
        return collect_data(small_pair, PROMPTS, log, settings, blobs=blobs)

    assert collect(8, fresh=False).generations == 5
    assert collect(0, fresh=False).generations == 0
    collect(0, fresh=True)
    records = list(log.records())
    assert [record.teacher is None for record in records] == [False] * 5 + [True] * 5
    same = [replace(record, teacher=None, time=0.0) for record in records]
    assert same[:5] == same[5:]


def test_the_id_of_a_generation_is_what_it_always_was(small_pair: Pair) -> None:
    """Replay, used failures and manifests know a generation by it."""
    fixed = replace(small_pair, draft=small_pair.target, identity=PairId("t", "d", "k"))
    said = [[5], [1], (astuple(SHORT.sampler), "rejection", 3, 8, 512), ("t", "d", "k"), None, "default"]
    expected = hashlib.sha256(repr(said).encode()).hexdigest()[:32]
    assert _content_id(fixed, [5], [1], keeping(8), "default") == expected


@pytest.mark.parametrize("live", [False, True])
def test_a_blob_is_on_disk_before_the_record_that_points_there(live: bool, small_pair: Pair, log: FailureLog) -> None:
    order: list[str] = []

    class Watched(NoSync):
        def write(self, descriptor: int, data: bytes) -> int:
            order.append("blob" if data.startswith(b"DLTD") else "record")
            return super().write(descriptor, data)

        def sync(self, descriptor: int, full: bool = False) -> None:
            order.append("sync")

    files = Watched()
    blobs = BlobFile(log.path.with_name("teacher.bin"), files)
    settings = CollectSettings(keeping(8), chat_template=False, live=live)
    collect_data(small_pair, PROMPTS[:3], FailureLog(log.path, files), settings, blobs=blobs)
    if live:
        assert order[-8:] == ["blob", "sync", "record", "sync"] * 2
    else:
        written = [step for step in order if step != "sync"]
        assert written == ["blob", "record"]  # of the whole group
        assert all(order[i + 1] == "sync" for i, step in enumerate(order) if step != "sync")


def test_the_replay_buffer_points_at_the_same_blobs(
    small_pair: Pair, log: FailureLog, blobs: BlobFile, tmp_path: Path
) -> None:
    settings = CollectSettings(keeping(8), chat_template=False)
    collect_data(small_pair, PROMPTS, log, settings, blobs=blobs)
    replay = ReplayBuffer(tmp_path / "replay", 50)
    replay.remember(log.records(), seed=0)
    replay.refresh(lambda: log.records(), seed=1)
    log.path.unlink()  # the buffer outlives the log, and so do the blobs
    kept = replay.records()
    assert len(kept) == 5
    for record in kept:
        assert record.teacher is not None
        check_against_truth(small_pair, record, decode_top_k(blobs.read(record.teacher)))


def test_without_a_file_for_them_distributions_are_refused(small_pair: Pair, log: FailureLog) -> None:
    with pytest.raises(ConfigError, match=r"pass blobs=data\.blobs"):
        run(small_pair, log, decoding=keeping(8))


# -- what is written, and when ----------------------------------------------------------------------------------------


def test_a_report_adds_up_what_the_records_say(small_pair: Pair, log: FailureLog) -> None:
    report = run(small_pair, log, source="tests")
    records = list(log.records())
    assert (report.prompts, report.generations) == (5, 5)
    assert [record.prompt for record in records] == [prompt.text for prompt in PROMPTS]
    assert {(record.source, record.run_seed, record.adapter) for record in records} == {("tests", 0, None)}
    assert report.failures == sum(record.is_failure for record in records) > 0
    values = report.to_json()
    assert values["tokens"] == sum(len(record.target_output) for record in records)
    assert values["rounds"] == sum(len(record.rounds) for record in records)
    drafted, accepted = (sum(counts) for counts in zip(*(r for record in records for r in record.rounds), strict=True))
    assert values["acceptance_rate"] == pytest.approx(accepted / drafted)
    assert values["acceptance_length"] == pytest.approx(values["tokens"] / values["rounds"])
    assert values["tokens_per_second"] == pytest.approx(values["tokens"] / values["seconds"])


@pytest.mark.parametrize("live", [False, True])
def test_a_request_to_stop_is_heard_while_prompts_are_read(live: bool, small_pair: Pair, log: FailureLog) -> None:
    report = collect_data(small_pair, [Prompt(" ")] * 99, log, CollectSettings(SHORT, live=live), StopAfter(3))
    assert report.interrupted
    assert report.skipped == {"empty": 3}


@pytest.mark.parametrize("live", [False, True])
def test_tokens_are_counted_before_the_first_record(live: bool, small_pair: Pair, log: FailureLog) -> None:
    counts: list[int] = []
    settings = CollectSettings(SHORT, chat_template=False, live=live)
    seen: list[int] = []
    report = collect_data(
        small_pair, PROMPTS, log, settings, None, lambda *_: seen.append(sum(counts)), on_tokens=counts.append
    )
    assert sum(counts) == report.acceptance.tokens
    assert seen[0] > 0


@pytest.mark.parametrize("live", [False, True])
def test_each_record_is_on_disk_before_the_report_of_it(live: bool, small_pair: Pair, log: FailureLog) -> None:
    seen = []

    def look(report: CollectReport, record: Record) -> None:
        seen.append(report.generations)
        on_disk = [found.id for found in FailureLog(log.path).records()]
        assert on_disk[report.generations - 1] == record.id
        assert len(on_disk) == (report.generations if live else 3)

    settings = CollectSettings(SHORT, chat_template=False, live=live)
    collect_data(small_pair, PROMPTS[:3], log, settings, on_record=look)
    assert seen == [1, 2, 3]


def test_a_generation_without_a_disagreement_is_kept_and_is_no_failure(small_pair: Pair, log: FailureLog) -> None:
    twin = replace(small_pair, draft=small_pair.target)
    report = run(twin, log)
    assert (report.generations, report.failures) == (5, 0)
    records = list(log.records())
    assert len(records) == 5
    assert not any(record.is_failure for record in records)
    assert report.to_json()["acceptance_rate"] == 1.0


def test_a_chat_template_is_applied_unless_it_is_switched_off(small_pair: Pair, log: FailureLog) -> None:
    run(small_pair, log, PROMPTS[:1], chat_template=True)
    run(small_pair, log, PROMPTS[:1], chat_template=False)
    texts = [small_pair.tokenizer.decode(record.prompt_tokens) for record in log.records()]
    assert texts == ["[user]the target\n[assistant]", "the target"]


def test_lone_surrogates_in_a_prompt_come_back_from_the_log(small_pair: Pair, log: FailureLog) -> None:
    run(small_pair, log, [Prompt("a\udcffb")])
    (record,) = log.records()
    assert record.prompt == "a\udcffb"
    assert small_pair.tokenizer.decode(record.prompt_tokens) == "a\ufffdb"


# -- again, and on ----------------------------------------------------------------------------------------------------


def test_the_same_run_again_has_nothing_left_to_do(small_pair: Pair, log: FailureLog) -> None:
    run(small_pair, log)
    before = log.path.read_bytes()
    report = run(small_pair, log)
    assert (report.generations, report.skipped) == (0, {ALREADY_COLLECTED: 5})
    assert report.skipped_prompts == []  # nothing is wrong with them
    assert report.to_json()["acceptance_length"] is None
    assert log.path.read_bytes() == before


def test_a_prompt_that_comes_twice_is_collected_once(small_pair: Pair, log: FailureLog) -> None:
    report = run(small_pair, log, [PROMPTS[0], PROMPTS[0]], fresh=True)
    assert (report.generations, report.skipped) == (1, {ALREADY_COLLECTED: 1})


def test_fresh_collects_again_and_gives_the_same_texts(small_pair: Pair, log: FailureLog) -> None:
    run(small_pair, log)
    assert run(small_pair, log, fresh=True).generations == 5
    records = list(log.records())
    assert [record.target_output for record in records[:5]] == [record.target_output for record in records[5:]]
    assert [record.id for record in records[:5]] == [record.id for record in records[5:]]
    assert len({record.id for record in records}) == 5  # an id says what was generated


OTHER = {
    "seed": {"decoding": replace(SHORT, sampler=sampler(0.9, seed=1))},
    "temperature": {"decoding": replace(SHORT, sampler=sampler(0.8))},
    "top-p": {"decoding": replace(SHORT, sampler=sampler(0.9, top_p=0.9))},
    "K": {"decoding": replace(SHORT, num_draft_tokens=2)},
    "rule": {"decoding": replace(SHORT, rule="match")},
}


@pytest.mark.parametrize("changes", OTHER.values(), ids=OTHER)
def test_other_conditions_collect_anew(changes: dict[str, object], small_pair: Pair, log: FailureLog) -> None:
    run(small_pair, log, PROMPTS[:2])
    assert run(small_pair, log, PROMPTS[:2], **changes).generations == 2


@pytest.mark.parametrize("part", ["target", "draft", "tokenizer"])
def test_another_pair_collects_anew(part: str, small_pair: Pair, log: FailureLog) -> None:
    run(small_pair, log, PROMPTS[:2])
    other = replace(small_pair, identity=replace(small_pair.identity, **{part: "0" * 64}))
    assert run(other, log, PROMPTS[:2]).generations == 2


def test_another_adapter_collects_anew_and_is_named_in_the_record(
    small_models: Models, tmp_path: Path, log: FailureLog
) -> None:
    pair = load_pair(small_models)
    run(pair, log, PROMPTS[:2])
    adapted = pair.with_adapter(write_lora(tmp_path / "v0001", pair.draft, amount=0.2))
    assert run(adapted, log, PROMPTS[:2]).generations == 2
    assert [record.adapter for record in log.records()] == [None, None, "v0001", "v0001"]
    assert run(adapted, log, PROMPTS[:2]).generations == 0


def longer(most: int) -> dict[str, object]:
    return {"decoding": replace(SHORT, max_tokens=most)}


@pytest.mark.parametrize("live", [False, True])
def test_what_a_lower_limit_had_cut_is_collected_anew_and_what_had_ended_is_not(
    live: bool, small_pair: Pair, log: FailureLog
) -> None:
    pair = replace(small_pair, stop_tokens=frozenset(range(20)))
    run(pair, log, live=live)
    first = list(log.records())
    cut = [record.prompt for record in first if record.finish == "length"]
    assert 0 < len(cut) < 5
    report = run(pair, log, live=live, **longer(16))
    assert (report.generations, report.skipped) == (len(cut), {ALREADY_COLLECTED: 5 - len(cut)})
    again = list(log.records())[5:]
    assert [record.prompt for record in again] == cut
    before = {record.prompt: record for record in first}
    # A live round that has no room for K proposals drafts fewer, and takes fewer random numbers.
    same = 8 - SHORT.num_draft_tokens if live else 8
    for record in again:
        assert record.target_output[:same] == before[record.prompt].target_output[:same]
        assert len(record.target_output) > 8
        assert (record.id != before[record.prompt].id, record.split) == (True, before[record.prompt].split)
    for most in (16, 12, 8, 4):  # nor is it asked for again, under that limit or a lower one
        assert run(pair, log, live=live, **longer(most)).generations == 0


def test_a_prompt_that_comes_twice_is_collected_once_under_a_higher_limit_too(
    small_pair: Pair, log: FailureLog
) -> None:
    pair = replace(small_pair, stop_tokens=frozenset())
    run(pair, log, PROMPTS[:1])
    report = run(pair, log, [PROMPTS[0], PROMPTS[0]], **longer(16))
    assert (report.generations, report.skipped) == (1, {ALREADY_COLLECTED: 1})


def test_a_prompt_that_leaves_no_room_for_the_higher_limit_is_too_long_and_is_not_collected_for_ever(
    small_pair: Pair, log: FailureLog
) -> None:
    pair = replace(small_pair, stop_tokens=frozenset(), context=30)
    run(pair, log, PROMPTS[:1])
    for _ in range(2):
        with pytest.raises(PromptError, match="the pair holds 30"):
            run(pair, log, PROMPTS[:1], **longer(28))
    assert len(list(log.records())) == 1


def test_source_and_longest_prompt_are_no_conditions(small_pair: Pair, log: FailureLog) -> None:
    run(small_pair, log)
    assert run(small_pair, log, source="elsewhere", max_prompt_length=99).generations == 0


def test_a_limit_counts_new_generations(small_pair: Pair, log: FailureLog) -> None:
    assert run(small_pair, log, limit=2).generations == 2
    second = run(small_pair, log, limit=2)
    assert (second.generations, second.skipped) == (2, {ALREADY_COLLECTED: 2})
    assert run(small_pair, log).generations == 1
    assert list(contents(log)) == [prompt.text for prompt in PROMPTS]


@pytest.mark.parametrize(("rule", "temperature"), MODES)
def test_the_order_of_prompts_changes_no_generation(
    rule: str, temperature: float, small_pair: Pair, tmp_path: Path
) -> None:
    decoding = Settings(sampler(temperature), rule, 3, 8)
    forward, backward, alone = (FailureLog(tmp_path / name) for name in "abc")
    run(small_pair, forward, decoding=decoding)
    run(small_pair, backward, PROMPTS[::-1], decoding=decoding)
    run(small_pair, alone, PROMPTS[2:3], decoding=decoding)
    assert contents(forward) == contents(backward)
    assert contents(alone).items() <= contents(forward).items()


def test_prompts_do_not_share_their_randomness(small_pair: Pair) -> None:
    assert len({generation_seed(seed, ids) for seed in (0, 1) for ids in ([1, 2], [12], [1], [2, 1])}) == 8
    assert 0 <= generation_seed(5, [1]) < 2**63


@pytest.fixture(scope="module")
def whole(small_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, ...]]:
    """What a run of all prompts gives that nobody stops."""
    log = FailureLog(tmp_path_factory.mktemp("whole") / "failures.jsonl")
    run(small_pair, log, live=True)
    return contents(log)


@pytest.mark.parametrize("looks", [0, 1, 4, 9, 14, 19])
def test_a_stop_keeps_what_was_logged_and_the_next_run_goes_on(
    looks: int, small_pair: Pair, whole: dict[str, tuple[int, ...]], log: FailureLog
) -> None:
    acknowledged = []
    settings, stop = CollectSettings(SHORT, chat_template=False, live=True), StopAfter(looks)
    report = collect_data(small_pair, PROMPTS, log, settings, stop, lambda _, record: acknowledged.append(record.id))
    assert report.interrupted
    assert [record.id for record in log.records()] == acknowledged
    assert len(acknowledged) == report.generations < 5
    assert (looks > 6) <= (report.generations > 0)  # some stops come after the first record
    assert run(small_pair, log, live=True).generations == 5 - len(acknowledged)
    assert contents(log) == whole


@pytest.mark.parametrize("looks", [0, 3, 9, 16])
def test_a_stopped_batch_keeps_what_was_finished_and_the_next_run_goes_on(
    looks: int, small_pair: Pair, log: FailureLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "GROUP", 2)
    monkeypatch.setattr(side_by_side, "MOST_ROWS", 2)  # so that some are finished before others are begun
    other = FailureLog(tmp_path / "whole.jsonl")
    run(small_pair, other)
    acknowledged: list[str] = []
    settings, stop = CollectSettings(SHORT, chat_template=False), StopAfter(looks)
    report = collect_data(small_pair, PROMPTS, log, settings, stop, lambda _, record: acknowledged.append(record.id))
    assert report.interrupted
    assert [record.id for record in log.records()] == acknowledged
    assert len(acknowledged) == report.generations < 5
    assert (looks > 12) <= (report.generations > 0)
    assert run(small_pair, log).generations == 5 - len(acknowledged)
    assert contents(log) == contents(other)


def test_a_batch_at_temperature_0_makes_the_records_of_the_live_loop(
    small_pair: Pair, log: FailureLog, tmp_path: Path
) -> None:
    greedy = Settings(sampler(0.0), "greedy", 3, 14)
    other = FailureLog(tmp_path / "live.jsonl")
    run(small_pair, log, decoding=greedy)
    run(small_pair, other, decoding=greedy, live=True)
    assert all(record.simulated for record in log.records())
    assert not any(record.simulated for record in other.records())
    ours, theirs = (
        [replace(record, time=0.0, simulated=False) for record in found.records()] for found in (log, other)
    )
    assert ours == theirs
    assert any(record.is_failure for record in ours)


def test_more_prompts_than_are_handed_over_together_are_all_collected_in_their_order(
    small_pair: Pair, log: FailureLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "AT_ONCE", 2)
    assert run(small_pair, log).generations == 5
    assert [record.prompt for record in log.records()] == [prompt.text for prompt in PROMPTS]
    assert run(small_pair, log, fresh=True, limit=3).generations == 3


# -- prompts that cannot be used --------------------------------------------------------------------------------------

LONG = Prompt("12345" * 300)


def test_unusable_prompts_are_skipped_named_and_counted(small_pair: Pair, log: FailureLog) -> None:
    report = run(
        small_pair, log, [Prompt(" \n"), PROMPTS[0], LONG, Prompt("a b\n" * 3), Prompt("")], max_prompt_length=30
    )
    assert report.generations == 2
    assert report.skipped == {"empty": 2, "too long": 1}
    first, second, third = map(str, report.skipped_prompts)
    assert first == "prompt 1 (''): empty, no text"
    assert second.startswith("prompt 3 ('1234512345123451234512345123451234512345'): too long, 1,500 ")
    assert third == "prompt 5 (''): empty, no text"
    assert report.to_json()["skipped"] == {"empty": 2, "too long": 1}


def test_a_prompt_that_the_caches_cannot_hold_is_skipped(small_pair: Pair, log: FailureLog) -> None:
    pair = replace(small_pair, context=20)
    report = run(pair, log, [Prompt("12345678"), Prompt("123456789")])
    assert (report.generations, report.skipped) == (1, {"too long": 1})
    assert "need 21 positions, the pair holds 20" in str(report.skipped_prompts[0])


def test_a_prompt_with_a_token_that_a_model_has_no_row_for_is_skipped(tmp_path: Path) -> None:
    for name, seed in (("target", 1), ("draft", 2)):
        write_llama(tmp_path / name, model=tiny_llama(VOCABULARY, seed=seed))
        add_token(tmp_path / name, "<tool>")
    pair = load_pair(Models(target=str(tmp_path / "target"), draft=str(tmp_path / "draft")))
    found = usable_tokens(pair, Prompt("use <tool>"), SHORT, chat_template=False, max_length=99)
    assert found == Unusable(
        "unknown token", f"target and draft share tokens up to {VOCABULARY - 1}, found {VOCABULARY}"
    )
    assert isinstance(usable_tokens(pair, Prompt("use"), SHORT, chat_template=False, max_length=99), list)


def test_a_run_without_one_usable_prompt_is_refused_and_writes_nothing(small_pair: Pair, log: FailureLog) -> None:
    with pytest.raises(PromptError, match=r"none of 2 prompts was usable: prompt 1 \(''\): empty, no text; prompt 2"):
        run(small_pair, log, [Prompt(""), LONG], max_prompt_length=30)
    assert not log.path.exists()


def test_a_run_whose_usable_prompts_were_collected_before_is_not_refused(small_pair: Pair, log: FailureLog) -> None:
    run(small_pair, log, PROMPTS[:1])
    report = run(small_pair, log, [Prompt(""), PROMPTS[0]])
    assert report.skipped == {"empty": 1, ALREADY_COLLECTED: 1}


@pytest.mark.parametrize("rule", ["greedy", "rejection"])
def test_the_embedded_pair_leaves_records_that_hold_together(rule: str, embedded_pair: Pair, log: FailureLog) -> None:
    decoding = Settings(sampler(0.0 if rule == "greedy" else 0.8), rule, 4, 24)
    report = run(embedded_pair, log, [Prompt("Return the"), Prompt("import os\n")], decoding=decoding)
    for record in log.records():
        assert sum(len(tokens) for _, tokens, *_ in rebuilt(record)) == len(record.target_output)
        assert record.pair == embedded_pair.identity
    assert report.failures > 0
