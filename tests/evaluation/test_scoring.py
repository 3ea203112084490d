"""One teacher-forced pass says what the live decoder said, however texts are batched, and pairs drafts to the bit."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import mlx.core as mx
import numpy as np
import pytest
from model_dirs import VOCABULARY, write_lora
from tiny import sampler

from draftloop.collection.collect import CollectSettings, generate_record
from draftloop.config import Models, Rule
from draftloop.data.records import Record
from draftloop.decoding import teacher_forced
from draftloop.decoding.decoder import Settings
from draftloop.decoding.teacher_forced import TargetGeneration
from draftloop.evaluation import scoring
from draftloop.evaluation.estimator import log_probs
from draftloop.evaluation.scoring import OutputScores, log_q_of, score
from draftloop.models.draft_vocabulary import DraftVocabulary
from draftloop.models.pair import Pair, load_pair
from draftloop.models.short_head import place_of_head
from draftloop.prompts.prompt import Prompt

MODES: list[tuple[Rule, float]] = [("greedy", 0.0), ("rejection", 0.9), ("block", 0.9), ("match", 0.9)]
BARE: dict[str, Path | None] = {"none": None}
NAMES = ("log_p", "log_q", "position")


@pytest.fixture
def pair(small_models: Models) -> Pair:
    """A pair of one's own: scoring leaves an adapter on."""
    return load_pair(small_models)


def live(pair: Pair, rule: Rule, temperature: float, **filters: float) -> list[Record]:
    settings = CollectSettings(Settings(sampler(temperature, **filters), rule, 3, 14))
    prompts = [[5], [7, 8, 9, 10, 11, 12], [20, 21]]
    return [generate_record(pair, Prompt("x"), prompt, settings)[0] for prompt in prompts]


def texts_of_many_lengths(count: int = 9, temperature: float = 0.8) -> list[TargetGeneration]:
    rng = np.random.default_rng(3)
    texts = []
    for i in range(count):
        prompt, output = (rng.integers(0, VOCABULARY, int(size)) for size in rng.integers(1, 20, 2))
        ids = [tuple(int(token) for token in part) for part in (prompt, output)]
        texts.append(
            TargetGeneration(ids[0], ids[1], sampler(temperature if i % 2 else 1.1, top_p=0.95 if i % 3 else 1.0))
        )
    return texts


def assert_close(found: list[OutputScores], expected: list[OutputScores], tolerance: float) -> None:
    for a, b in zip(found, expected, strict=True):
        for name in NAMES:
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=tolerance, err_msg=name)


@pytest.mark.parametrize(("rule", "temperature"), MODES)
@pytest.mark.parametrize("filters", [{}, {"top_k": 20}, {"top_p": 0.9}], ids=str)
def test_scores_are_what_the_live_decoder_recorded(
    rule: Rule, temperature: float, filters: dict[str, float], small_pair: Pair
) -> None:
    records = live(small_pair, rule, temperature, **filters)
    scores = score(small_pair, [TargetGeneration.of(record) for record in records], rule, BARE)["none"]
    for record, found in zip(records, scores, strict=True):
        np.testing.assert_allclose(found.log_p, log_probs(record.log_p), atol=1e-4)
        np.testing.assert_allclose(found.log_q, log_probs(record.log_q), atol=1e-4)
        assert found.log_p.dtype == np.float64


def test_the_embedded_pair_scores_what_it_recorded(embedded_pair: Pair) -> None:
    settings = CollectSettings(Settings(sampler(0.8, top_p=0.95), "rejection", 4, 20))
    record, _ = generate_record(embedded_pair, Prompt("x"), embedded_pair.tokenizer.encode("def read(self"), settings)
    (found,) = score(embedded_pair, [TargetGeneration.of(record)], "rejection", BARE)["none"]
    np.testing.assert_allclose(found.log_p, log_probs(record.log_p), atol=1e-4)
    np.testing.assert_allclose(found.log_q, log_probs(record.log_q), atol=1e-4)


@pytest.mark.parametrize(("rule", "temperature"), MODES)
def test_the_acceptance_of_a_position_follows_from_the_full_distributions(
    rule: Rule, temperature: float, small_pair: Pair
) -> None:
    text = TargetGeneration((5, 6), (7, 8, 9, 10), sampler(temperature, top_k=50 if temperature else 0))
    (found,) = score(small_pair, [text], rule, BARE)["none"]
    logits = [
        np.array(model(mx.array([text.input_tokens]))[0, 1:], dtype=np.float64)
        for model in (small_pair.target, small_pair.draft)
    ]
    if rule == "greedy":
        expected = logits[0].argmax(axis=-1) == logits[1].argmax(axis=-1)
    else:
        p, q = (np.exp(rows / temperature) * (rows >= np.sort(rows)[:, -50:-49]) for rows in logits)
        p, q = p / p.sum(axis=-1, keepdims=True), q / q.sum(axis=-1, keepdims=True)
        expected = (p * q if rule == "match" else np.minimum(p, q)).sum(axis=-1)
    np.testing.assert_allclose(found.position, expected, atol=1e-4)


def test_a_text_in_a_padded_batch_scores_as_it_does_alone(small_pair: Pair) -> None:
    texts = texts_of_many_lengths()
    together = score(small_pair, texts, "rejection", BARE)["none"]
    alone = [score(small_pair, [text], "rejection", BARE)["none"][0] for text in texts]
    assert [len(found.log_p) for found in together] == [len(text.output) for text in texts]
    assert_close(together, alone, 1e-4)


@pytest.mark.parametrize(("module", "name"), [(scoring, "BLOCK_BYTES"), (teacher_forced, "BATCH_BYTES")])
def test_little_memory_changes_nothing(
    module: ModuleType, name: str, small_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = texts_of_many_lengths()
    expected = score(small_pair, texts, "rejection", BARE)["none"]
    monkeypatch.setattr(teacher_forced, "PART", 3)  # of a prompt that is read alone
    for size in (1, 4 * VOCABULARY * 40):  # one text at a time, then a few
        monkeypatch.setattr(module, name, size)
        assert_close(score(small_pair, texts, "rejection", BARE)["none"], expected, 1e-4)


def test_each_text_is_scored_under_its_own_sampler(small_pair: Pair) -> None:
    warm, cold = (TargetGeneration((5, 6), (7, 8, 9), sampler(temperature)) for temperature in (1.0, 0.5))
    both = score(small_pair, [warm, cold], "rejection", BARE)["none"]
    assert np.abs(both[0].log_p - both[1].log_p).min() > 0.01
    assert_close(both, [score(small_pair, [text], "rejection", BARE)["none"][0] for text in (warm, cold)], 1e-4)


def test_drafts_are_scored_on_the_same_texts_and_target_distributions(pair: Pair, tmp_path: Path) -> None:
    texts = texts_of_many_lengths()
    changed = write_lora(tmp_path / "changed", pair.draft, amount=0.3)
    both = score(pair, texts, "rejection", {"none": None, "changed": changed})
    for bare, adapted in zip(both["none"], both["changed"], strict=True):
        assert (bare.log_p == adapted.log_p).all()
        assert not np.allclose(bare.position, adapted.position, atol=1e-3)
    for name, path in (("none", None), ("changed", changed)):
        assert_close(both[name], score(pair, texts, "rejection", {name: path})[name], 1e-4)


def test_an_adapter_of_zeros_scores_bit_for_bit_as_the_bare_draft(pair: Pair, tmp_path: Path) -> None:
    zero = write_lora(tmp_path / "zero", pair.draft, amount=0.0)
    both = score(pair, texts_of_many_lengths(), "rejection", {"none": None, "zero": zero, "again": zero})
    for bare, adapted, again in zip(both["none"], both["zero"], both["again"], strict=True):
        for name in NAMES:
            assert (getattr(bare, name) == getattr(adapted, name)).all()
            assert (getattr(bare, name) == getattr(again, name)).all()


class Counting:
    """A model that counts the tokens it reads."""

    def __init__(self, model: object) -> None:
        self.model, self.layers = model, model.layers
        self.rows = 0

    def __call__(self, ids: mx.array, cache: object = None) -> mx.array:
        self.rows += ids.shape[0]
        return self.model(ids, cache=cache)


def test_the_target_reads_each_text_once_however_many_drafts_there_are(pair: Pair, tmp_path: Path) -> None:
    texts = texts_of_many_lengths()
    target = Counting(pair.target)
    adapter = write_lora(tmp_path / "a", pair.draft, amount=0.1)
    score(replace(pair, target=target), texts, "rejection", {"none": None, "a": adapter, "b": adapter})
    assert target.rows == len(texts)


def test_a_text_without_mass_under_the_draft_has_minus_infinity_there(small_pair: Pair) -> None:
    greedy = TargetGeneration((5, 6), (7, 8, 9), sampler(0.0))
    (found,) = score(small_pair, [greedy], "greedy", BARE)["none"]
    assert set(found.log_q) <= {0.0, -np.inf}
    assert set(found.position) <= {0.0, 1.0}


def of_some_tokens(pair: Pair) -> Pair:
    head = place_of_head(pair.draft)
    assert head is not None
    return replace(pair, vocabulary=DraftVocabulary(tuple(range(0, VOCABULARY, 2)), head, "a test"))


@pytest.mark.parametrize(("rule", "temperature"), MODES)
def test_a_draft_is_scored_with_the_tokens_that_it_may_propose_as_it_decodes(
    pair: Pair, rule: Rule, temperature: float
) -> None:
    pair = of_some_tokens(pair)
    with pair.merged():
        records = live(pair, rule, temperature)
    assert any(value is None for record in records for value in record.log_q)
    found = score(pair, [TargetGeneration.of(record) for record in records], rule, BARE)["none"]
    for record, one in zip(records, found, strict=True):
        np.testing.assert_allclose(one.log_q, log_probs(record.log_q), atol=1e-4)
        assert not np.isnan(one.position).any()


def test_a_scoring_that_is_given_up_leaves_the_whole_head(pair: Pair) -> None:
    pair, logits = of_some_tokens(pair), pair.draft(mx.array([[1, 2]]))

    def give_up() -> None:
        raise KeyboardInterrupt

    for work in (partial(score, rule="rejection"), log_q_of):
        with pytest.raises(KeyboardInterrupt):
            work(pair, texts_of_many_lengths(), drafts=BARE, on_generation=give_up)
        assert mx.array_equal(pair.draft(mx.array([[1, 2]])), logits)
