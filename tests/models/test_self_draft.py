"""A draft of the target's own first layers computes as they do, with its arrays, and leaves the target alone."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import zoo
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.generate import generate_step
from mlx_lm.utils import load_model
from model_dirs import write_llama
from tiny import sampler

from draftloop.caches import read_whole
from draftloop.config import Lora, Models
from draftloop.decoding.decoder import Decoding, Settings
from draftloop.errors import PairError
from draftloop.models import adapter as lora
from draftloop.models.fingerprints import fingerprint_of_cut, fingerprints
from draftloop.models.pair import load_pair
from draftloop.models.self_draft import check_decodes, cut_draft, least_layers
from draftloop.runtime.rng import get_state
from scripts import model_zoo

TOKENS = mx.array([[3, 1, 4, 1, 5, 9, 2, 6]])
LEAST = {  # where fewer layers have no cache for the masks of all layers of a kind
    "llama": 1,
    "qwen3_5": 2,
    "falcon_h1": 1,
    "gpt_oss": 2,
    "gemma4_text": 1,
    "baichuan_m1": 2,
    "lfm2": 2,
    "nemotron_h": 2,
    "deepseek_v3": 1,
    "solar_open": 1,
}


def of_first_layers(model: nn.Module, layers: int) -> list[mx.array]:
    """What the first layers of a model give."""
    given: list[mx.array] = []

    def noting(kind: type) -> type:
        def call(self: nn.Module, *arguments: object, **named: object) -> object:
            found = kind.__call__(self, *arguments, **named)
            given.append(found[0] if isinstance(found, tuple) else found)
            return found

        return type(kind.__name__, (kind,), {"__call__": call})

    kinds = [type(layer) for layer in model.layers]
    for layer, kind in zip(model.layers, kinds, strict=True):
        layer.__class__ = noting(kind)
    read_whole(model, TOKENS)
    for layer, kind in zip(model.layers, kinds, strict=True):
        layer.__class__ = kind
    return given[:layers]


@pytest.mark.parametrize("name", LEAST)
def test_its_layers_are_the_target_s(name: str) -> None:
    target, config = zoo.model(name), model_zoo.specimen(name).config
    layers = least_layers(target, config)
    assert layers == LEAST[name]
    draft = cut_draft(target, config, layers)
    check_decodes(draft, layers)
    assert len(draft.layers) == layers
    for found, expected in zip(of_first_layers(draft, layers), of_first_layers(target, layers), strict=True):
        assert mx.array_equal(found, expected)


@pytest.mark.parametrize("name", ["llama", "qwen3_5", "deepseek_v3"])
def test_it_holds_no_array_of_its_own(name: str) -> None:
    target, config = zoo.model(name), model_zoo.specimen(name).config
    own = {id(leaf) for _, leaf in tree_flatten(target.parameters())}
    random = np.array(get_state())
    draft = cut_draft(target, config, 2)
    assert all(id(leaf) in own for _, leaf in tree_flatten(draft.parameters()))
    assert np.array_equal(random, np.array(get_state()))
    assert tree_flatten(draft.trainable_parameters()) == []


def test_what_each_layer_has_a_part_of_is_cut_with_it() -> None:
    """Of gemma4's embeddings by layer, those of the first layers come first."""
    target = zoo.model("gemma4_text")
    draft = cut_draft(target, model_zoo.specimen("gemma4_text").config, 2)
    whole, part = (dict(tree_flatten(one.parameters())) for one in (target, draft))
    name = next(name for name in whole if "embed_tokens_per_layer" in name)
    assert mx.array_equal(part[name], whole[name][:, : part[name].shape[1]])
    assert part[name].shape[1] * 3 == whole[name].shape[1]


def test_it_is_quantized_where_the_target_is() -> None:
    target = zoo.in_four_bits("llama")
    draft = cut_draft(target, model_zoo.specimen("llama").config, 1)
    check_decodes(draft, 1)
    kinds = {name: type(module) for name, module in target.named_modules()}
    assert all(kinds[name] is type(module) for name, module in draft.named_modules() if name)
    assert any(isinstance(module, nn.QuantizedLinear) for module in draft.modules())


@pytest.mark.parametrize("layers", [3, 4, 1_000])
def test_as_many_layers_as_the_target_has_are_no_draft(layers: int) -> None:
    expected = f"self:{layers} is no draft: the target has 3 layers; expected self:1 to self:2"
    with pytest.raises(PairError, match=expected):
        cut_draft(zoo.model("llama"), model_zoo.specimen("llama").config, layers)


def test_a_family_that_needs_more_layers_says_so() -> None:
    draft = cut_draft(zoo.model("qwen3_5"), model_zoo.specimen("qwen3_5").config, 1)
    with pytest.raises(PairError, match="the target's first 1 layers are no draft") as caught:
        check_decodes(draft, 1)
    assert "take more of them (models.draft: self:N)" in str(caught.value)


def test_a_target_of_one_layer_has_no_draft_in_it(tmp_path: Path) -> None:
    models = Models(target=str(write_llama(tmp_path, layers=1)), draft="self")
    with pytest.raises(PairError, match="no draft can be cut from the target's 1 layers"):
        load_pair(models)


# -- the pair ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("target"), layers=4)


def file_hashes(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


def test_a_pair_of_a_target_and_itself(target: Path) -> None:
    pair = load_pair(Models(target=str(target), draft="self:2"))
    assert pair.self_layers is not None
    assert (pair.self_layers.layers, pair.self_layers.is_settled, len(pair.draft.layers)) == (2, True, 2)
    own = fingerprints(target)
    assert pair.identity.target == own.model
    assert pair.identity.draft == fingerprint_of_cut(own, 2).model
    assert pair.identity.draft != load_pair(Models(target=str(target), draft="self:1")).identity.draft


def test_without_a_number_it_begins_with_an_eighth(target: Path) -> None:
    pair = load_pair(Models(target=str(target), draft="self"))
    assert pair.self_layers is not None
    assert (pair.self_layers.layers, pair.self_layers.is_settled) == (1, False)


def test_decoding_copies_no_adapted_matrix(target: Path) -> None:
    pair = load_pair(Models(target=str(target), draft="self:2"))
    lora.attach_fresh(pair.draft, lora.shape_for(pair.draft, Lora(rank=4)), 0)
    filled = {name: 0.1 * mx.ones_like(leaf) for name, leaf in lora.adapter_parameters(pair.draft).items()}
    lora.load_parameters(pair.draft, filled)
    before = read_whole(pair.draft, TOKENS)
    of_target = {id(leaf) for _, leaf in tree_flatten(pair.target.parameters())}
    with pair.merged():
        held = [leaf for _, leaf in tree_flatten(pair.draft.parameters()) if id(leaf) not in of_target]
        found = read_whole(pair.draft, TOKENS)
    assert sum(leaf.size for leaf in held) == sum(leaf.size for leaf in filled.values())
    assert mx.allclose(found, before, rtol=1e-4, atol=1e-5)
    assert lora.adapter_parameters(pair.draft).keys() == filled.keys()
    merged = replace(pair, self_layers=None)  # as a draft of its own is
    with merged.merged():
        assert mx.allclose(read_whole(pair.draft, TOKENS), before, rtol=1e-4, atol=1e-5)


def test_the_files_alone_make_it_too(target: Path, tmp_path: Path) -> None:
    """mlx-lm, given a config that is cut and no more than these layers' weights, makes the same model."""
    pair = load_pair(Models(target=str(target), draft="self:2"))
    config = json.loads((target / "config.json").read_text()) | {"num_hidden_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(tmp_path / "model.safetensors"), dict(tree_flatten(pair.draft.parameters())))
    model, _ = load_model(tmp_path)
    assert mx.array_equal(read_whole(model, TOKENS), read_whole(pair.draft, TOKENS))


def test_greedy_outputs_are_those_of_the_target_alone_and_it_stays_as_it_was(target: Path, tmp_path: Path) -> None:
    """A round drafts with arrays that it verifies with: nothing that it writes may be one of them."""
    files = file_hashes(target)
    pair = replace(load_pair(Models(target=str(target), draft="self:2")), stop_tokens=frozenset())
    weights = {name: np.array(leaf) for name, leaf in tree_flatten(pair.target.parameters())}
    lora.attach_fresh(pair.draft, lora.shape_for(pair.draft, Lora(rank=4)), 0)
    noise = {name: 0.05 * mx.random.normal(leaf.shape) for name, leaf in lora.adapter_parameters(pair.draft).items()}
    lora.load_parameters(pair.draft, noise)
    prompt = [5, 1, 9, 30, 2, 7]
    plain = [int(token) for token, _ in islice(generate_step(mx.array(prompt), pair.target), 48)]
    with pair.merged():
        rounds = list(Decoding(pair, prompt, Settings(sampler(0.0), "greedy", num_draft_tokens=3, max_tokens=48)))
    assert [token for round_ in rounds for token in round_.tokens] == plain
    assert any(round_.accepted for round_ in rounds)
    assert all(np.array_equal(weights[name], np.array(leaf)) for name, leaf in tree_flatten(pair.target.parameters()))
    assert file_hashes(target) == files
