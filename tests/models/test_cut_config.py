"""The config of the first layers keeps what is said of each layer, and says nothing of the others."""

from __future__ import annotations

from typing import Any

import pytest

from draftloop.models.cut_config import count_layers, cut_config

KINDS = ["a", "b", "a", "b"]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"num_hidden_layers": 4, "vocab_size": 4}, {"num_hidden_layers": 2, "vocab_size": 4}),
        ({"n_layer": 4, "layer_types": KINDS}, {"n_layer": 2, "layer_types": ["a", "b"]}),
        ({"n_layers": 4, "mlp_only_layers": [0]}, {"n_layers": 2, "mlp_only_layers": [0]}),  # by their index
        (
            {"num_hidden_layers": 4, "hybrid_override_pattern": "M*M-"},
            {"num_hidden_layers": 2, "hybrid_override_pattern": "M*"},
        ),
        (
            {"num_hidden_layers": 4, "model_type": "gpt2"},
            {"num_hidden_layers": 2, "model_type": "gpt2"},
        ),  # four letters
        ({"num_hidden_layers": 6, "num_kv_shared_layers": 5}, {"num_hidden_layers": 2, "num_kv_shared_layers": 1}),
        ({"num_hidden_layers": 6, "num_kv_shared_layers": 2}, {"num_hidden_layers": 2, "num_kv_shared_layers": 0}),
        (
            {"model_type": "gemma3", "text_config": {"num_hidden_layers": 4, "layer_types": KINDS}},
            {"model_type": "gemma3", "text_config": {"num_hidden_layers": 2, "layer_types": ["a", "b"]}},
        ),
    ],
)
def test_it_is_cut(config: dict[str, Any], expected: dict[str, Any]) -> None:
    before = repr(config)
    assert cut_config(config, 2) == expected
    assert repr(config) == before
    assert count_layers(expected) == 2


def test_a_config_that_does_not_say_how_many_layers_there_are() -> None:
    assert count_layers({"hidden_size": 4}) is None
    assert count_layers({"num_hidden_layers": "4"}) is None
    assert cut_config({"hidden_size": 4}, 2) == {"hidden_size": 4}
