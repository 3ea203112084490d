"""A pair whose target follows a script: a greeting, a call of a tool, an answer, or a song without an end.

Both models are real Llamas whose layer adds nothing, so that the next token follows from the last one alone, at any
usual temperature. The chat template chooses the script, by the token with which it begins the assistant's turn. The
draft knows most of it.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
from model_dirs import END_OF_TEXT, llama_config, tokenizer_json, write_tokenizer
from safetensors.numpy import save_file
from tokenizers import Tokenizer, pre_tokenizers

GREETING = ["Hello", " there", ", friend", "."]
CALL = ["<tool_call>", '\n{"name": "temper', 'ature", "argu', 'ments": {"city"', ': "Lima"}}\n', "</tool_call>"]
ANSWER = ["It is", " 19 ", b"\xc2", b"\xb0", "C", " in Lima."]  # a character of two tokens
SONG = ["Tra", " la", ", la", ", la la"]  # and again from the second one on
_ADDED = ["<tool_call>", "</tool_call>", "[greeting]", "[call]", "[answer]", "[song]"]
_TEMPLATE = """
{%- for message in messages %}[{{ message.role }}] {{ message.content }}
{%- for called in message.tool_calls or [] %}{% set tool_call = called.function %}
<tool_call>
{"name": "{{ tool_call.name }}", "arguments": {{ tool_call.arguments | tojson }}}
</tool_call>
{%- endfor %}{{ '\\n' }}
{%- endfor %}
{%- if tools %}{{ tools | tojson }}{% endif %}
{%- if messages[-1].role == 'tool' %}[answer]
{%- elif messages[-1].content == 'sing' %}[song]
{%- elif tools %}[call]
{%- else %}[greeting]
{%- endif %}"""
_CONTEXT = 1 << 20
_CERTAIN = 30.0  # logits of what follows; all others are 0


def write_scripted_pair(root: Path) -> tuple[Path, Path]:
    """The directories of the target and the draft."""
    tokenizer, follows = _tokenizer_and_script()
    rows = tokenizer.get_vocab_size()
    unknown = set(sorted(follows)[::4])
    for name, known in (("target", follows), ("draft", {a: b for a, b in follows.items() if a not in unknown})):
        directory = root / name
        write_tokenizer(directory, chat_template=_TEMPLATE)
        (directory / "tokenizer.json").write_text(tokenizer.to_str())
        config = llama_config(rows, layers=1) | {"hidden_size": rows, "max_position_embeddings": _CONTEXT}
        (directory / "config.json").write_text(json.dumps(config))
        save_file(_weights(rows, known, otherwise=follows[0]), directory / "model.safetensors", {"format": "mlx"})
    return root / "target", root / "draft"


def token_of(directory: Path, text: str) -> int:
    """The token of a text that is one."""
    (token,) = Tokenizer.from_file(str(directory / "tokenizer.json")).encode(text).ids
    return int(token)


def _tokenizer_and_script() -> tuple[Tokenizer, dict[int, int]]:
    """A tokenizer of everything that is said, and which token follows on which; 0 stands for all others too."""
    scripts = {"[greeting]": GREETING, "[call]": CALL, "[answer]": ANSWER, "[song]": SONG}
    state = json.loads(tokenizer_json())
    vocabulary = state["model"]["vocab"]
    for piece in (piece for script in scripts.values() for piece in script if piece not in _ADDED):
        vocabulary.setdefault(_spelled(piece), len(vocabulary))
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.add_tokens(_ADDED)

    def token(piece: str | bytes) -> int:
        found = tokenizer.token_to_id(piece if piece in _ADDED else _spelled(piece))
        assert found is not None
        return int(found)

    end = tokenizer.token_to_id(END_OF_TEXT)
    follows = {end: token(GREETING[0])}
    for beginning, script in scripts.items():
        tokens = [token(beginning), *map(token, script)]
        assert not follows.keys() & set(tokens), "a token has one that follows"
        follows |= dict(pairwise(tokens))
        follows[tokens[-1]] = tokens[2] if beginning == "[song]" else end
    return tokenizer, follows


def _spelled(piece: str | bytes) -> str:
    """A piece as byte-level vocabularies write it."""
    if isinstance(piece, bytes):
        return piece.decode("latin-1")  # these bytes stand for themselves
    return "".join(part for part, _ in pre_tokenizers.ByteLevel(False, use_regex=False).pre_tokenize_str(piece))


def _weights(rows: int, follows: dict[int, int], otherwise: int) -> dict[str, np.ndarray]:
    """A Llama of one layer that adds nothing: each token is a direction, and so is the one that follows on it."""
    config = llama_config(rows, layers=1)
    width, inner = config["num_attention_heads"] * config["head_dim"], config["intermediate_size"]
    head = np.zeros((rows, rows), np.float32)
    for token in range(rows):
        head[follows.get(token, otherwise), token] = _CERTAIN / np.sqrt(rows)  # a normalized direction is that long
    layer = {
        **{f"self_attn.{name}_proj": np.zeros((width, rows), np.float32) for name in "qkv"},
        "self_attn.o_proj": np.zeros((rows, width), np.float32),
        "mlp.gate_proj": np.zeros((inner, rows), np.float32),
        "mlp.up_proj": np.zeros((inner, rows), np.float32),
        "mlp.down_proj": np.zeros((rows, inner), np.float32),
        "input_layernorm": np.ones(rows, np.float32),
        "post_attention_layernorm": np.ones(rows, np.float32),
    }
    return {
        "model.embed_tokens.weight": np.eye(rows, dtype=np.float32),
        **{f"model.layers.0.{name}.weight": value for name, value in layer.items()},
        "model.norm.weight": np.ones(rows, np.float32),
        "lm_head.weight": head,
    }
