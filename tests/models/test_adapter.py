from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import load_adapters
from tiny import tiny_llama
from workshop import adapter_bytes, snapshot

from draftloop.config import Lora
from draftloop.errors import AdapterError
from draftloop.models import adapter as lora
from draftloop.models.adapter_format import AdapterConfig, read_config

IDS = mx.array([[5, 1, 9, 30, 2, 7]])
SHAPE = AdapterConfig(rank=4, scale=2.0)


def quantized() -> nn.Module:
    model = tiny_llama(width=64)
    nn.quantize(model, group_size=32, bits=4)
    mx.eval(model.parameters())
    return model.freeze()


def with_random_adapter(shape: AdapterConfig = SHAPE, seed: int = 3) -> nn.Module:
    model = tiny_llama()
    lora.attach_fresh(model, shape, seed)
    random = {
        name: mx.random.normal(a.shape, key=mx.random.key(seed)) for name, a in lora.adapter_parameters(model).items()
    }
    lora.load_parameters(model, random)
    mx.eval(model.parameters())
    return model


def saved(tmp_path: Path, shape: AdapterConfig = SHAPE) -> tuple[nn.Module, Path]:
    model = with_random_adapter(shape)
    directory = tmp_path / "adapter"
    directory.mkdir()
    lora.save_adapter(model, directory)
    return model, directory


@pytest.mark.parametrize("make", [tiny_llama, quantized])
def test_a_zero_adapter_changes_no_bit_of_the_output(make):
    model = make()
    before = model(IDS)
    lora.attach_fresh(model, SHAPE, seed=0)
    assert lora.is_attached(model)
    assert mx.array_equal(model(IDS), before)


@pytest.mark.parametrize("make", [tiny_llama, quantized])
def test_taking_an_adapter_off_gives_the_base_back_byte_for_byte(make):
    model = make()
    before = snapshot(model)
    lora.attach_fresh(model, SHAPE, seed=0)
    assert snapshot(model) == before
    lora.detach(model)
    assert not lora.is_attached(model)
    assert {name: bytes(memoryview(value)) for name, value in tree_flatten(model.parameters())} == before


def test_only_the_adapter_can_be_trained():
    model = quantized()
    lora.attach_fresh(model, SHAPE, seed=0)
    trainable = {name for name, _ in tree_flatten(model.trainable_parameters())}
    assert trainable == set(lora.adapter_parameters(model))
    assert len(trainable) == 2 * 7 * 2  # A and B of seven linear layers in each of two blocks


def test_the_start_depends_on_the_seed_alone_and_leaves_the_global_random_state():
    adapters = []
    for seed in (1, 1, 2):
        model = tiny_llama()
        mx.random.seed(9)
        before = mx.random.state[0].tolist()
        lora.attach_fresh(model, SHAPE, seed)
        assert mx.random.state[0].tolist() == before
        adapters.append(adapter_bytes(model))
    assert adapters[0] == adapters[1] != adapters[2]


def test_attaching_again_replaces_instead_of_nesting():
    model = with_random_adapter()
    lora.attach_fresh(model, AdapterConfig(rank=2, scale=2.0), seed=0)
    assert not [name for name, _ in model.named_modules() if name.endswith("linear.linear")]
    assert lora.carried_shape(model).rank == 2
    assert mx.array_equal(model(IDS), tiny_llama()(IDS))


def test_new_layers_take_over_the_model_s_mode_so_dropout_sleeps_while_generating(tmp_path):
    _, directory = saved(tmp_path, AdapterConfig(rank=4, scale=2.0, dropout=0.5))
    model = tiny_llama()
    lora.attach_directory(model, directory)
    assert mx.array_equal(model(IDS), model(IDS))
    model.train()
    assert not mx.array_equal(model(IDS), model(IDS))


@pytest.mark.parametrize(
    "shape",
    [
        SHAPE,
        AdapterConfig(rank=3, scale=0.5, dropout=0.1, num_layers=1),
        AdapterConfig(rank=2, scale=20.0, keys=("self_attn.q_proj",)),
        AdapterConfig(rank=2, scale=20.0, num_layers=1, keys=("lm_head", "mlp.up_proj")),
    ],
)
def test_a_saved_adapter_comes_back_the_same_here_and_through_mlx_lm(tmp_path, shape):
    model, directory = saved(tmp_path, shape)
    assert lora.carried_shape(model) == read_config(directory) == shape
    ours, theirs = tiny_llama(), tiny_llama()
    assert lora.attach_directory(ours, directory) == shape
    load_adapters(theirs, str(directory)).eval()
    assert mx.array_equal(ours(IDS), model(IDS))
    assert mx.array_equal(theirs(IDS), model(IDS))
    assert not mx.array_equal(ours(IDS), tiny_llama()(IDS))


def test_a_quantized_base_carries_a_saved_adapter_too(tmp_path):
    model = quantized()
    lora.attach_fresh(model, SHAPE, seed=0)
    lora.load_parameters(model, {name: mx.ones_like(a) * 0.01 for name, a in lora.adapter_parameters(model).items()})
    lora.save_adapter(model, tmp_path)
    again = quantized()
    lora.attach_directory(again, tmp_path)
    assert mx.array_equal(again(IDS), model(IDS))
    assert not mx.array_equal(again(IDS), quantized()(IDS))


def test_weights_are_read_at_once_so_a_later_file_changes_nothing(tmp_path):
    _, directory = saved(tmp_path)
    model = tiny_llama()
    lora.attach_directory(model, directory)
    zeros = {name: mx.zeros_like(a) for name, a in lora.adapter_parameters(model).items()}
    mx.save_safetensors(str(directory / "adapters.safetensors"), zeros)
    assert not mx.array_equal(model(IDS), tiny_llama()(IDS))


def test_16_bit_weights_are_taken_and_trained_on_in_32(tmp_path):
    model, directory = saved(tmp_path)
    halves = {name: a.astype(mx.float16) for name, a in lora.adapter_parameters(model).items()}
    mx.save_safetensors(str(directory / "adapters.safetensors"), halves)
    again = tiny_llama()
    lora.attach_directory(again, directory)
    assert {a.dtype for a in lora.adapter_parameters(again).values()} == {mx.float32}


def test_describing_a_bare_draft_is_refused():
    with pytest.raises(AdapterError, match="carries no adapter"):
        lora.carried_shape(tiny_llama())


LEAF = "model.layers.0.self_attn.q_proj.lora_a"


def drop(weights):
    del weights[LEAF]


def foreign(weights):
    weights["model.layers.9.self_attn.q_proj.lora_a"] = weights[LEAF]


def reshape(weights):
    weights[LEAF] = weights[LEAF].T


def poison(weights):
    weights[LEAF] = weights[LEAF] * float("nan")


def integers(weights):
    weights[LEAF] = weights[LEAF].astype(mx.int32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, f"{LEAF} is missing"),
        (foreign, r"model\.layers\.9.* has no place in this draft"),
        (reshape, rf"{LEAF} has the shape \(4, 32\), this draft needs \(32, 4\)"),
        (poison, f"{LEAF} holds NaN"),
        (integers, f"{LEAF} is I32"),
    ],
)
def test_an_unfit_leaf_is_named_and_the_draft_stays_as_it_was(tmp_path, change, message):
    model, directory = saved(tmp_path)
    before = adapter_bytes(model), model(IDS)
    weights = dict(lora.adapter_parameters(model))
    change(weights)
    mx.save_safetensors(str(directory / "adapters.safetensors"), weights)
    with pytest.raises(AdapterError, match=message):
        lora.attach_directory(model, directory)
    assert adapter_bytes(model) == before[0]
    assert mx.array_equal(model(IDS), before[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fine_tune_type": "dora"}, "fine_tune_type is 'dora'"),
        ({"fine_tune_type": "full"}, "fine_tune_type is 'full'"),
        ({"num_layers": 1.5}, "num_layers is 1.5"),
        ({"num_layers": None}, "num_layers is None"),
        ({"lora_parameters": []}, "lora_parameters: found list"),
        ({"rank": 0}, "rank is 0"),
        ({"rank": True}, "rank is True"),
        ({"rank": 10**9}, "rank is 1000000000"),
        ({"rank": 8}, r"has the shape \(\d+, 4\), this draft needs \(\d+, 8\)"),
        ({"scale": "2"}, "scale is '2'"),
        ({"scale": float("inf")}, "scale is inf"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"keys": "q_proj"}, "keys is 'q_proj'"),
        ({"keys": ["self_attn.qkv"]}, "self_attn.qkv is no linear layer of this draft"),
        ({"keys": ["self_attn.q_proj", "model.layers.0.self_attn.q_proj"]}, "convert layer"),
    ],
)
def test_an_unfit_field_of_the_configuration_is_named(tmp_path, change, message):
    model, directory = saved(tmp_path)
    config = json.loads((directory / "adapter_config.json").read_text())
    where = config if change.keys() & {"fine_tune_type", "num_layers", "lora_parameters"} else config["lora_parameters"]
    where.update(change)
    (directory / "adapter_config.json").write_text(json.dumps(config))
    before = adapter_bytes(model)
    with pytest.raises(AdapterError, match=message):
        lora.attach_directory(model, directory)
    assert adapter_bytes(model) == before


def test_damaged_files_are_refused_without_a_crash(tmp_path):
    model, directory = saved(tmp_path)
    weights = (directory / "adapters.safetensors").read_bytes()
    for damaged in (b"", weights[:7], weights[:100], weights[:-1], b"\xff" * 64, weights + b"x"):
        (directory / "adapters.safetensors").write_bytes(damaged)
        with pytest.raises(AdapterError, match="cannot be read as safetensors"):
            lora.attach_directory(model, directory)
    for damaged in (b"", b"[1]", b"\xff\xfe", b"{", b"[" * 100_000):
        (directory / "adapter_config.json").write_bytes(damaged)
        with pytest.raises(AdapterError, match=r"adapter_config\.json"):
            lora.attach_directory(model, directory)
    with pytest.raises(AdapterError, match="no adapter directory"):
        lora.attach_directory(model, tmp_path / "nowhere")


@pytest.mark.parametrize("tied", [False, True])
def test_all_matrices_are_those_of_the_layers_the_embedding_and_the_head(tied: bool, tmp_path: Path) -> None:
    model = tiny_llama(seed=2, tied=tied)
    assert lora.shape_for(model, Lora(rank=2, matrices="layers")).keys is None
    shape = lora.shape_for(model, Lora(rank=2, matrices="all"))
    lora.attach_fresh(model, shape, seed=0)
    outside = {name.rpartition(".")[0] for name in lora.adapter_parameters(model) if ".layers." not in name}
    assert outside == ({"model.embed_tokens"} if tied else {"model.embed_tokens", "lm_head"})
    assert lora.carried_shape(model) == shape
    lora.save_adapter(model, tmp_path)
    assert lora.attach_directory(tiny_llama(seed=2, tied=tied), tmp_path) == shape


# -- merged into the weights for a while -------------------------------------------------------------------------------


def test_while_merged_the_model_says_the_same_without_adapter_layers_and_afterwards_is_what_it_was(tmp_path) -> None:
    model, ids = tiny_llama(tied=True), mx.array([[3, 1, 4, 1, 5]])
    bare = np.array(model(ids))
    lora.attach_fresh(model, lora.shape_for(model, Lora(rank=4, matrices="all")), seed=0)
    weights = {k: 0.1 * mx.random.normal(v.shape) for k, v in lora.adapter_parameters(model).items()}
    lora.load_parameters(model, weights)
    adapted, leaves = np.array(model(ids)), dict(tree_flatten(model.parameters()))
    with lora.merged(model):
        assert not lora.is_attached(model)
        np.testing.assert_allclose(np.array(model(ids)), adapted, atol=1e-3)
        with lora.merged(model):  # nothing is left to merge
            np.testing.assert_allclose(np.array(model(ids)), adapted, atol=1e-3)
    assert np.abs(adapted - bare).max() > 0.1
    after = dict(tree_flatten(model.parameters()))
    assert after.keys() == leaves.keys()
    assert all(after[name] is leaf for name, leaf in leaves.items())


@pytest.mark.parametrize("layers", ["4 bits", "bfloat16"])
def test_a_layer_of_fewer_bits_keeps_its_adapter_beside_it_while_merged(layers: str) -> None:
    model, ids = tiny_llama(width=64), mx.array([[3, 1, 4, 1, 5]])
    if layers == "bfloat16":
        model.set_dtype(mx.bfloat16)
    else:
        nn.quantize(model, group_size=32, bits=4)
    lora.attach_fresh(model, lora.shape_for(model, Lora(rank=4)), seed=0)
    weights = {k: 0.1 * mx.random.normal(v.shape) for k, v in lora.adapter_parameters(model).items()}
    lora.load_parameters(model, weights)
    adapted = np.array(model(ids).astype(mx.float32))
    assert lora.stays_beside(model)
    with lora.merged(model):
        assert lora.is_attached(model)
        np.testing.assert_array_equal(np.array(model(ids).astype(mx.float32)), adapted)


def test_an_error_within_leaves_the_adapter_on() -> None:
    model = tiny_llama()
    lora.attach_fresh(model, lora.shape_for(model, Lora(rank=4)), seed=0)
    with pytest.raises(KeyError), lora.merged(model):
        raise KeyError
    assert lora.is_attached(model)


@pytest.mark.parametrize("matrices", ["layers", "all"])
def test_the_input_width_of_most_layers_is_the_hidden_size(matrices):
    model = tiny_llama(vocabulary=96, width=32)  # with an embedding of 96 inputs and a down projection of 64
    lora.attach_fresh(model, lora.shape_for(model, Lora(rank=2, matrices=matrices)), seed=0)
    assert lora.input_width(model) == 32


def test_without_an_adapter_there_is_no_input_width():
    with pytest.raises(AdapterError, match="carries no adapter"):
        lora.input_width(tiny_llama())
