"""One prompt becomes text, piece by piece, with the numbers of how it went."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tiny import sampler

from draftloop.config import Speculative
from draftloop.decoding.decoder import Decoding, Settings
from draftloop.decoding.generate import Generated, decoding_settings, generate
from draftloop.errors import ConfigError, PromptError
from draftloop.models.pair import Pair

GREEDY = Settings(sampler(0.0), "greedy", 3, 12)


def run(pair: Pair, prompt: str = "the target", settings: Settings = GREEDY, **options: object) -> Generated:
    options = {"chat_template": False, "max_prompt_length": 50} | options
    return generate(pair, prompt, settings, **options)


def test_the_pieces_of_a_text_make_the_text_and_the_text_is_that_of_its_tokens(embedded_pair: Pair) -> None:
    for seed in range(3):
        pieces: list[str] = []
        settings = Settings(sampler(0.8, seed=seed), "rejection", 4, 24)
        found = run(embedded_pair, "def read(self):\n", settings, on_text=pieces.append)
        assert "".join(pieces) == found.text == embedded_pair.tokenizer.decode(found.tokens)
        assert len([piece for piece in pieces if piece]) > 3  # it came in pieces


def test_the_tokens_are_the_decoders_own_under_the_very_seed(small_pair: Pair) -> None:
    settings = Settings(sampler(0.8, seed=5), "rejection", 3, 12)
    found = run(small_pair, settings=settings)
    ids = small_pair.tokenizer.encode("the target")
    assert found.tokens == [token for one in Decoding(small_pair, ids, settings) for token in one.tokens]
    assert found.prompt_tokens == len(ids)
    assert found == replace(run(small_pair, settings=settings), tokens_per_second=found.tokens_per_second)


def test_the_stop_token_ends_the_text_and_is_no_part_of_it(small_pair: Pair) -> None:
    tokens = run(small_pair).tokens
    stop = tokens[5]
    found = run(replace(small_pair, stop_tokens=frozenset({stop})))
    assert found.tokens == tokens[: tokens.index(stop)]
    assert (found.finish, run(small_pair).finish) == ("stop", "length")


def test_a_text_that_ends_at_once_is_empty(small_pair: Pair) -> None:
    found = run(replace(small_pair, stop_tokens=frozenset({run(small_pair).tokens[0]})))
    assert (found.text, found.tokens, found.acceptance_length) == ("", [], 1.0)


def test_the_chat_template_is_applied_when_it_is_wanted(small_pair: Pair) -> None:
    plain, chat = (run(small_pair, chat_template=wanted).prompt_tokens for wanted in (False, True))
    assert chat - plain == len(small_pair.tokenizer.encode("[user]")) + len(
        small_pair.tokenizer.encode("\n[assistant]")
    )


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [("", "empty, no text"), ("1" * 51, "too long, 51 tokens"), ("2" * 10_000, "too long, 10,000 characters")],
    ids=["empty", "long", "huge"],
)
def test_a_prompt_that_cannot_be_used_is_refused(prompt: str, reason: str, small_pair: Pair) -> None:
    with pytest.raises(PromptError, match=f"the prompt cannot be used: {reason}"):
        run(small_pair, prompt)


def test_a_prompt_that_the_caches_cannot_hold_is_refused(small_pair: Pair) -> None:
    with pytest.raises(PromptError, match="the pair holds 17"):
        run(replace(small_pair, context=17))


def test_settings_are_those_of_the_configuration() -> None:
    speculative = Speculative(
        num_draft_tokens=5, temperature=0.7, top_p=0.9, min_p=0.02, top_k=40, max_tokens=33, seed=8, rule="match"
    )
    found = decoding_settings(speculative)
    assert found.sampler == sampler(0.7, top_p=0.9, min_p=0.02, top_k=40, seed=8)
    assert (found.rule, found.num_draft_tokens, found.max_tokens) == ("match", 5, 33)
    assert decoding_settings(Speculative(temperature=0.0)).rule == "greedy"
    with pytest.raises(ConfigError, match=r"rule greedy does not fit temperature 0\.7"):
        decoding_settings(Speculative(temperature=0.7, rule="greedy"))
