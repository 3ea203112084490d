"""Fingerprint a model by its files, and its chat template apart from it. Knows no name, pair or mlx.

A model is its weights, its config and its vocabulary: they decide its output on given tokens. How text becomes tokens
(a chat template, merges, a normaliser) is no part of it, for records hold tokens; nor is `generation_config.json`,
whose sampler nobody here uses.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import orjson

_MEBIBYTE = 1 << 20
_SAYS_NOTHING = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")  # weights say their own dtype
_RAW_VOCABULARIES = ("tokenizer.model", "tiktoken.model", "*.tiktoken", "vocab.txt")
_ENDS_OF_TEXT = ("bos_token", "eos_token")
_OTHER_SPECIAL = ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FORMER_FILES = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json"),
)


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """Of one model directory, each a sha256 in hex.

    Attributes:
        model: of config, vocabulary, and each shard's name, size, header, first and last megabyte.
        former: what draftloop 0.1 called the model: it counted every byte of the tokenizer's files, its chat template
            and `generation_config.json` too. Data directories that it began know the model by that.
        template: of the chat template that the tokenizer would use; None where it has none.
    """

    model: str
    former: str
    template: str | None

    @property
    def names(self) -> tuple[str, str]:
        """All by which the model may be known."""
        return self.model, self.former


def fingerprints(path: Path) -> Fingerprints:
    """The fingerprints of a model directory; the shards are read once for both of its own."""
    config = (path / "config.json").read_bytes()
    model, former = hashlib.sha256(_meaning(config)), hashlib.sha256(config)
    for part in chain.from_iterable(map(_ends, sorted(path.glob("model*.safetensors")))):
        model.update(part)
        former.update(part)
    model.update(_canonical(sorted(_vocabulary(path))))
    for name in _FORMER_FILES:
        if (path / name).is_file():
            former.update(name.encode() + (path / name).read_bytes())
    return Fingerprints(model.hexdigest(), former.hexdigest(), _template(path))


def fingerprint_of_cut(target: Fingerprints, layers: int) -> Fingerprints:
    """What a draft is known by that is made of the first `layers` of a target; it has no chat template of its own."""
    name = hashlib.sha256(f"self:{layers} of {target.model}".encode()).hexdigest()
    return Fingerprints(model=name, former=name, template=None)


def _ends(shard: Path) -> Iterator[bytes]:
    """Name and size of a shard, its header with the megabyte after it, and its last megabyte."""
    size = shard.stat().st_size
    yield f"{shard.name}:{size}:".encode()
    with shard.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
        file.seek(0)
        yield file.read(min(size, 8 + header + _MEBIBYTE))
        file.seek(max(0, size - _MEBIBYTE))
        yield file.read()


def _meaning(config: bytes) -> bytes:
    """A config without layout, order and fields that no model reads; the very bytes where they are no JSON object."""
    parsed = _object(config)
    if not parsed:
        return config
    inner = parsed.get("text_config")
    if isinstance(inner, dict):
        parsed["text_config"] = _without_chatter(inner)
    return _canonical(_without_chatter(parsed))


def _without_chatter(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in _SAYS_NOTHING}


def _vocabulary(path: Path) -> dict[tuple[str, str], None]:
    """(id, token) of all that a tokenizer of these files knows, wherever it says so, and how a text begins and ends.

    A file that only repeats what another one says adds nothing. One that cannot be read says nothing here: the pair is
    refused when it is loaded.
    """
    whole, config = _read(path / "tokenizer.json"), _read(path / "tokenizer_config.json")
    special = _read(path / "special_tokens_map.json") | config
    decoder = _member(config, "added_tokens_decoder")
    numbered = dict.fromkeys(_numbered(_member(whole, "model").get("vocab")))  # a set that is all but sorted already
    for vocabulary in (_read(path / "vocab.json"), _read(path / "added_tokens.json")):
        numbered.update(dict.fromkeys(_numbered(vocabulary)))
    added = whole.get("added_tokens")
    entries = [entry for entry in added if isinstance(entry, dict)] if isinstance(added, list) else []
    numbered.update({(_id(entry.get("id")), _content(entry)): None for entry in entries})
    numbered.update(dict.fromkeys((_id(number), _content(token)) for number, token in decoder.items()))
    if not whole:
        files = (file for pattern in _RAW_VOCABULARIES for file in path.glob(pattern))
        numbered.update({(file.name, hashlib.sha256(file.read_bytes()).hexdigest()): None for file in files})
    known = {token for _, token in numbered}
    named = {_content(token) for token in _special(special)} - {""}
    numbered.update({("new", token): None for token in named - known})  # the tokenizer gives these the next free ids
    numbered.update({(name, _content(special.get(name))): None for name in _ENDS_OF_TEXT})
    return numbered


def _numbered(vocabulary: Any) -> Iterator[tuple[str, str]]:
    """A vocabulary as an object of ids by token, or a list of [token, score] in the order of the ids."""
    if isinstance(vocabulary, dict):
        yield from ((_id(number), token) for token, number in vocabulary.items())
    elif isinstance(vocabulary, list):
        entries = (entry[0] if isinstance(entry, list) and entry else entry for entry in vocabulary)
        yield from ((_id(number), str(token)) for number, token in enumerate(entries))


def _id(number: object) -> str:
    """An id as text that sorts as the number does: what is sorted already is sorted quickly."""
    return str(number).rjust(8)


def _special(config: Mapping[str, Any]) -> Iterator[Any]:
    """The special tokens that are named."""
    yield from (config.get(name) for name in (*_ENDS_OF_TEXT, *_OTHER_SPECIAL))
    for name in ("additional_special_tokens", "extra_special_tokens"):
        more = config.get(name)
        members: Iterable[Any] = more.values() if isinstance(more, dict) else more if isinstance(more, list) else ()
        yield from members


def _content(token: Any) -> str:
    """A token that is written as text or as an object with its `content`; empty where there is none."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


def _template(path: Path) -> str | None:
    """As transformers and mlx-lm look for it: files come before the tokenizer's config."""
    config = _read(path / "tokenizer_config.json")
    files = {file.stem: file for file in path.glob("additional_chat_templates/*.jinja")}
    if (path / "chat_template.jinja").is_file():
        files["default"] = path / "chat_template.jinja"
    templates: Any = {name: file.read_bytes().decode("utf-8", "replace") for name, file in files.items()}
    if not files:
        templates = config.get("chat_template")
    if isinstance(templates, list):
        templates = {entry.get("name"): entry.get("template") for entry in templates if isinstance(entry, dict)}
    if isinstance(templates, dict) and list(templates) == ["default"]:
        templates = templates["default"]
    said = (templates or None, config.get("chat_template_type"))
    return None if said == (None, None) else hashlib.sha256(_canonical(said)).hexdigest()


def _member(parsed: Mapping[str, Any], name: str) -> dict[str, Any]:
    inner = parsed.get(name)
    return inner if isinstance(inner, dict) else {}


def _read(path: Path) -> dict[str, Any]:
    return _object(path.read_bytes()) if path.is_file() else {}


def _object(content: bytes) -> dict[str, Any]:
    """A JSON object; an empty one where these bytes are none."""
    for parse in (orjson.loads, json.loads):  # a vocabulary of 10 MB wants the first; the other has lone surrogates too
        try:
            parsed: Any = parse(content)
        except (ValueError, RecursionError):
            continue
        return parsed if isinstance(parsed, dict) else {}
    return {}


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
