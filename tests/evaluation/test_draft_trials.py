"""Drafts with one vocabulary or another are measured side by side, and take the memory of one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import make_record
from mlx.utils import tree_flatten
from shop import fixed_costs

from draftloop.config import Config
from draftloop.decoding.draft_length import LatencyProfile
from draftloop.evaluation.draft_trials import try_drafts
from draftloop.evaluation.gate_target import LoadedTarget
from draftloop.models import adapter as lora
from draftloop.models.adapter_format import AdapterConfig
from draftloop.models.draft_vocabulary import DraftVocabulary
from draftloop.models.pair import Pair
from draftloop.models.self_layers import SelfLayers
from draftloop.models.short_head import place_of_head


@pytest.mark.parametrize("is_own", [False, True], ids=["merged", "beside"])
def test_variants_share_all_but_the_rows_of_their_heads(small_pair: Pair, *, is_own: bool) -> None:
    seen: list[Pair] = []

    def timing(pair: Pair, most: int) -> LatencyProfile:
        seen.append(pair)
        return fixed_costs(pair, most)

    layers = SelfLayers(1, is_settled=True, why="a test") if is_own else None
    pair = replace(small_pair.twin(), self_layers=layers)
    lora.attach_fresh(pair.draft, AdapterConfig(rank=2, scale=1.0), seed=0)
    head = place_of_head(pair.draft)
    assert head is not None
    vocabularies = [DraftVocabulary(tuple(range(size)), head, "a test") for size in (40, 20)]
    records = [make_record(pair=pair.identity)]
    whole, *short = try_drafts(pair, [None, *vocabularies], records, Config(), LoadedTarget(timing))
    assert [trial.vocabulary for trial in (whole, *short)] == [None, *vocabularies]
    assert max(trial.acceptance for trial in short) <= whole.acceptance
    first, *others = ({id(leaf) for _, leaf in tree_flatten(one.draft.parameters())} for one in seen)
    assert all(len(other - first) <= 3 for other in others)  # the rows of the head, and of its adapter
    assert lora.is_attached(pair.draft)  # nothing was done to it


def test_what_is_measured_is_the_trained_draft(small_pair: Pair) -> None:
    pair = small_pair.twin()
    lora.attach_fresh(pair.draft, AdapterConfig(rank=2, scale=1.0), seed=0)
    records, target = [make_record(pair=pair.identity)], LoadedTarget(fixed_costs)
    (before,) = try_drafts(pair, [None], records, Config(), target)
    lora.load_parameters(pair.draft, {name: leaf + 1.0 for name, leaf in lora.adapter_parameters(pair.draft).items()})
    (after,) = try_drafts(pair, [None], records, Config(), target)
    assert before.acceptance != after.acceptance
