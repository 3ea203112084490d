"""Small models on disk in mlx-lm's directory format, right and wrong ones, with a byte-level tokenizer of their own.

Everything is made in a moment and seeded: random Llamas of a few thousand weights, and 300 ids that spell any text.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models.mamba import Model as Mamba
from mlx_lm.models.mamba import ModelArgs as MambaArgs
from safetensors.numpy import save_file
from tiny import tiny_llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from draftloop.config import Models
from draftloop.data.records import PairId

VOCABULARY = 300
END_OF_TEXT = "<|end|>"  # id 0
CHAT_TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
_TEXT = "the target and the draft read the same text and the draft learns from the target what the target wants " * 4


@cache
def tokenizer_json() -> str:
    """Byte-level BPE of VOCABULARY ids, the first of which ends a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_TEXT], trainer)
    assert tokenizer.get_vocab_size() >= VOCABULARY - 20
    return str(tokenizer.to_str())


def write_tokenizer(directory: Path, *, chat_template: str | None = CHAT_TEMPLATE, **fields: Any) -> None:
    """`tokenizer.json` and `tokenizer_config.json`; `fields` go into the latter."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_text(tokenizer_json())
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
    config |= {"clean_up_tokenization_spaces": False} | fields
    if chat_template is not None:
        config["chat_template"] = chat_template
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def edit_json(path: Path, **fields: Any) -> None:
    """Set top-level members of a JSON file; None takes one out."""
    found = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in found.items() if value is not None}))


def add_token(directory: Path, token: str, *, special: bool = False) -> None:
    """One more token at the end of the vocabulary."""
    path = directory / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([token])
    path.write_text(tokenizer.to_str())


def swap_tokens(directory: Path, first: int, second: int) -> None:
    """Exchange what two ids mean: the vocabulary keeps its size."""
    path = directory / "tokenizer.json"
    found = json.loads(path.read_text())
    vocabulary = found["model"]["vocab"]
    names = {i: token for token, i in vocabulary.items()}
    vocabulary[names[first]], vocabulary[names[second]] = second, first
    path.write_text(json.dumps(found))


def save_model(model: nn.Module, directory: Path, config: dict[str, Any]) -> None:
    """`config.json` and `model.safetensors`."""
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: np.array(value.astype(mx.float32)) for name, value in tree_flatten(model.parameters())}
    save_file(weights, directory / "model.safetensors", metadata={"format": "mlx"})
    (directory / "config.json").write_text(json.dumps(config))


def write_llama(
    directory: Path,
    *,
    seed: int = 1,
    rows: int = VOCABULARY,
    model: nn.Module | None = None,
    layers: int = 2,
    **config: Any,
) -> Path:
    """A model directory with a tokenizer.

    Args:
        directory: made when missing.
        seed: of the weights.
        rows: logits of the model, VOCABULARY or more where it is padded.
        model: by default a random one.
        layers: of the random one.
        config: further members of `config.json`.
    """
    save_model(model or tiny_llama(rows, layers=layers, seed=seed), directory, llama_config(rows, layers) | config)
    write_tokenizer(directory)
    return directory


def llama_config(rows: int = VOCABULARY, layers: int = 2) -> dict[str, Any]:
    """The `config.json` of `tiny_llama`."""
    return {
        "model_type": "llama",
        "hidden_size": 32,
        "num_hidden_layers": layers,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rms_norm_eps": 1e-5,
        "vocab_size": rows,
        "tie_word_embeddings": False,
        "max_position_embeddings": 512,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }


def write_pair(root: Path, *, likeness: float = 0.97, **target_config: Any) -> Models:
    """A target and a draft whose weights lie close to the target's, so that it guesses some of its tokens."""
    target, draft = (tiny_llama(VOCABULARY, seed=seed) for seed in (1, 2))
    mixed = tree_map(lambda a, b: likeness * a + (1 - likeness) * b, target.parameters(), draft.parameters())
    draft.update(mixed)
    write_llama(root / "target", model=target, **target_config)
    write_llama(root / "draft", model=draft)
    return models_in(root)


def models_in(root: Path) -> Models:
    """The pair that `write_pair` left in `root`."""
    return Models(target=str(root / "target"), draft=str(root / "draft"))


def write_mamba(directory: Path) -> Path:
    """A state-space model, from whose cache nothing can be cut off."""
    fields: dict[str, Any] = {
        "model_type": "mamba",
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 32,
        "state_size": 4,
        "num_hidden_layers": 1,
        "conv_kernel": 4,
        "use_bias": False,
        "use_conv_bias": True,
        "time_step_rank": 2,
        "tie_word_embeddings": True,
    }
    mx.random.seed(0)
    save_model(Mamba(MambaArgs(**fields)), directory, fields | {"bos_token_id": 0, "eos_token_id": 0})
    write_tokenizer(directory)
    return directory


def write_lora(directory: Path, model: nn.Module, *, amount: float, seed: int = 0, rank: int = 4) -> Path:
    """An adapter directory for a Llama: every B drawn with a standard deviation of `amount`; 0 changes nothing."""
    rng = np.random.default_rng(seed)
    weights = {}
    for i, layer in enumerate(model.layers):
        for name, module in layer.named_modules():
            if isinstance(module, nn.Linear):
                out, into = module.weight.shape
                key = f"model.layers.{i}.{name}"
                weights[f"{key}.lora_a"] = rng.normal(size=(into, rank)).astype(np.float32) / np.float32(into**0.5)
                weights[f"{key}.lora_b"] = (rng.normal(size=(rank, out)) * amount).astype(np.float32)
    directory.mkdir(parents=True, exist_ok=True)
    save_file(weights, directory / "adapters.safetensors")
    parameters = {"rank": rank, "scale": 1.0, "dropout": 0.0}
    config = {"fine_tune_type": "lora", "num_layers": -1, "lora_parameters": parameters}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


def foreign(identity: PairId) -> PairId:
    """The identity of a pair with another draft."""
    return PairId(identity.target, "f" * 64, identity.tokenizer)
