"""Load a target and a draft, prove that they can work together before any work starts, attach the draft's adapter.

One tokenizer, the target's, turns text into tokens for both; so the meaning of every token id must agree, and nothing
else need. Logit widths may differ (models of one family are padded differently): tokens from the smaller width on
are never proposed nor emitted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

from ..caches import NoWayBack, rewinding_of
from ..config import Models
from ..data.records import PairId
from ..errors import AdapterError, PairError
from . import adapter as lora
from . import manifest
from .draft_vocabulary import DraftVocabulary
from .fingerprints import Fingerprints, fingerprint_of_cut, fingerprints
from .hub import find_model
from .loading import load_directory, read_model_config, widen_on_cpu
from .names import ModelNames
from .self_draft import check_decodes, cut_draft, layers_to_start_with
from .self_layers import SelfLayers
from .short_head import shorten, shortened
from .twin import twin_of


@dataclass(frozen=True)
class Pair:
    """A target and a draft that were proved to fit.

    Attributes:
        tokenizer: the target's, as mlx-lm wraps it.
        width: tokens 0 .. width - 1 have a logit in both models.
        stop_tokens: end a generation, the target's.
        context: the longest sequence that the position encodings of both were made for; None is unlimited.
        identity: the models by the names that a data directory knows them by.
        adapter: version or directory attached to the draft; None is the bare draft.
        files: fingerprints of target and draft; None where they were not loaded from files.
        draft_names: others by which an adapter from elsewhere may name this draft.
        self_layers: of how many of the target's own layers the draft is made, and why; None where it is a model of its
            own.
        vocabulary: which tokens the draft may propose; None where that is not chosen, and all may be.
    """

    target: nn.Module
    draft: nn.Module
    tokenizer: Any
    identity: PairId
    width: int
    stop_tokens: frozenset[int]
    context: int | None
    adapter: str | None = None
    files: tuple[Fingerprints, Fingerprints] | None = None
    draft_names: frozenset[str] = frozenset()
    self_layers: SelfLayers | None = None
    vocabulary: DraftVocabulary | None = None

    def portable(self, identity: PairId) -> PairId:
        """The identity of a pair for another data directory: these models by their fingerprints."""
        own, files = (self.identity.target, self.identity.draft), self.files or ()
        fingerprint_of = {name: file.model for name, file in zip(own, files, strict=False)}
        target, draft = (fingerprint_of.get(name, name) for name in (identity.target, identity.draft))
        return replace(identity, target=target, draft=draft)

    def twin(self) -> Pair:
        """The same pair with a draft of its own, made of the same arrays: another adapter may be on it."""
        return replace(self, draft=twin_of(self.draft))

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Within the block the draft decodes as fast as it can, its adapter merged where that costs no second target.

        A draft that is made of the target's arrays keeps its adapter beside them: merging would copy them. The head is
        that of the tokens it may propose.
        """
        with lora.merged(self.draft, copies=self.self_layers is None), shortened(self.draft, self.vocabulary):
            yield

    def merge(self) -> None:
        """The same for good."""
        lora.merge(self.draft, copies=self.self_layers is None)
        shorten(self.draft, self.vocabulary)

    def with_adapter(self, path: Path | None, name: str | None = None) -> Pair:
        """The same pair with another adapter, or none, on the same draft.

        Args:
            path: an adapter directory; None takes the adapter off.
            name: what reports and records call it; by default the directory's name.

        Raises:
            AdapterError: damaged, of another shape, or made for another draft; the draft is as it was.
        """
        if path is None:
            lora.detach(self.draft)
            return replace(self, adapter=None)
        own_manifest = manifest.verify_adapter(path)
        made_for = None if own_manifest is None or own_manifest.pair is None else own_manifest.pair.draft
        if made_for is not None and made_for not in {self.identity.draft, *self.draft_names}:
            raise AdapterError(
                f"{path} was trained for draft {made_for[:12]}, this draft is {self.identity.draft[:12]}: "
                "choose a version of this draft (`adapters list`) or none (`--adapter none`, `train --from-base`), "
                "or give this pair a data directory of its own (--data-dir)"
            )
        lora.attach_directory(self.draft, path)
        return replace(self, adapter=name or path.name)


def load_pair(
    models: Models,
    adapter_path: Path | None = None,
    adapter_name: str | None = None,
    *,
    lazy_target: bool = False,
    names: ModelNames | None = None,
) -> Pair:
    """Load and check both models.

    Args:
        models: names or directories of target and draft.
        adapter_path: adapter directory for the draft, None for the bare draft.
        adapter_name: what reports and records call the adapter.
        lazy_target: leave the target's weights on disk until it is first asked for logits; damage shows only then.
        names: of the data directory that is worked in; None calls the models by their fingerprints.

    Raises:
        PairError: not found, not loadable, in need of Python of its own where that is not trusted, another tokenizer,
            or a cache that cannot take rejected tokens back exactly.
        AdapterError: the adapter does not fit the draft.
        StoreError: `names` cannot be read.
    """
    if models.is_self:
        pair = _load_with_self(models, names, lazy_target=lazy_target)
        return pair.with_adapter(adapter_path, adapter_name) if adapter_path is not None else pair
    target_path, draft_path = (find_model(name) for name in (models.target, models.draft))
    target, tokenizer, target_config = _load(target_path, models, lazy_target)
    draft, draft_tokenizer, draft_config = _load(draft_path, models)
    widths = [int(model(mx.array([[0]])).shape[-1]) for model in (target, draft)]  # of the logits
    check_tokenizers(tokenizer, draft_tokenizer, min(widths))
    limits = [position_limit(config) for config in (target_config, draft_config)]
    files = fingerprints(target_path), fingerprints(draft_path)
    target_name, draft_name = (model.model if names is None else names.of(model) for model in files)
    pair = Pair(
        target=target,
        draft=draft,
        tokenizer=tokenizer,
        identity=PairId(target=target_name, draft=draft_name, tokenizer=_tokenizer_fingerprint(tokenizer)),
        width=min(widths),
        stop_tokens=frozenset(int(i) for i in tokenizer.eos_token_ids),
        context=min((limit for limit in limits if limit is not None), default=None),
        files=files,
        draft_names=frozenset(files[1].names) if names is None else names.all_of(files[1]),
    )
    if names is not None:
        pair = with_kept_vocabulary(pair, models, names)
    if not lazy_target:
        check_caches(pair)
    return pair.with_adapter(adapter_path, adapter_name) if adapter_path is not None else pair


def with_self_layers(pair: Pair, models: Models, layers: SelfLayers, names: ModelNames | None = None) -> Pair:
    """The same target with a bare draft of so many of its own layers.

    Args:
        pair: its target is shared.
        models: by whose target's directory the config is read.
        layers: how many, and why.
        names: as in `load_pair`.

    Raises:
        PairError: so many layers are no draft.
        StoreError: `names` cannot be read.
    """
    path = find_model(models.target)
    own = fingerprints(path) if pair.files is None else pair.files[0]
    draft, file = cut_draft(pair.target, read_model_config(path), layers.layers), fingerprint_of_cut(own, layers.layers)
    check_decodes(draft, layers.layers)
    cut = replace(
        pair,
        draft=draft,
        adapter=None,
        identity=replace(pair.identity, draft=file.model if names is None else names.of(file)),
        files=(own, file),
        draft_names=frozenset(file.names),
        self_layers=layers,
        vocabulary=None,
    )
    return cut if names is None else with_kept_vocabulary(cut, models, names)


def with_kept_vocabulary(pair: Pair, models: Models, names: ModelNames) -> Pair:
    """The pair with the tokens that its data directory has chosen for the draft. Raises StoreError: unreadable."""
    kept = None if models.draft_vocabulary == "all" else names.vocabularies.of(pair.identity.draft)
    return pair if kept == pair.vocabulary else replace(pair, vocabulary=kept)


def with_kept_choices(pair: Pair, models: Models, names: ModelNames) -> Pair:
    """The pair with what its data directory has chosen by now: layers and tokens; itself where that is nothing new.

    Raises as `with_self_layers`.
    """
    if pair.self_layers is not None and models.self_layers is None:
        kept = names.self_layers.of(pair.identity.target)
        if kept is not None and kept.layers != pair.self_layers.layers:
            return with_self_layers(pair, models, kept, names)
    return with_kept_vocabulary(pair, models, names)


def _load_with_self(models: Models, names: ModelNames | None, *, lazy_target: bool) -> Pair:
    path = find_model(models.target)
    target, tokenizer, config = _load(path, models, lazy_target)
    own = fingerprints(path)
    name = own.model if names is None else names.of(own)
    width = int(target(mx.array([[0]])).shape[-1])
    bare = Pair(
        target=target,
        draft=target,
        tokenizer=tokenizer,
        identity=PairId(target=name, draft=name, tokenizer=_tokenizer_fingerprint(tokenizer)),
        width=width,
        stop_tokens=frozenset(int(i) for i in tokenizer.eos_token_ids),
        context=position_limit(config),
        files=(own, own),
    )
    kept = None if names is None or models.self_layers is not None else names.self_layers.of(name)
    layers = kept or layers_to_start_with(target, config, models.self_layers)
    pair = with_self_layers(bare, models, layers, names)
    if not lazy_target:
        check_caches(pair)
    return pair


def _load(path: Path, models: Models, lazy: bool = False) -> tuple[nn.Module, Any, dict[str, Any]]:
    model, tokenizer, config = load_directory(path, trust_remote_code=models.trust_remote_code, lazy=lazy)
    widen_on_cpu(model)
    if not lazy:
        mx.eval(model.parameters())
    model.eval()
    model.freeze()
    return model, tokenizer, config


def check_tokenizers(target: Any, draft: Any, width: int) -> None:
    """Raise PairError, naming the first difference, unless every token id below `width` means the same to both models.

    The target's tokenizer alone is used, so which tokens are special to the draft, which it pads with and where its own
    outputs begin and end does not count.
    """
    of_target, of_draft = ({i: token for token, i in t.get_vocab().items()} for t in (target, draft))
    for i in range(width):
        if of_target.get(i) != of_draft.get(i):
            raise PairError(
                f"target and draft have different tokenizers: id {i} is {of_target.get(i)!r} to the target and "
                f"{of_draft.get(i)!r} to the draft; use two models of one family"
            )


def check_caches(pair: Pair) -> None:
    """Raise PairError unless both models' caches take rejected tokens back exactly."""
    for role, model in (("target", pair.target), ("draft", pair.draft)):
        try:
            rewinding_of(model)
        except NoWayBack as error:
            raise PairError(
                f"the {role}'s cache ({cache_kinds(model)}) cannot take rejected tokens back exactly ({error}), "
                "so it cannot decode speculatively; choose another model, and report this one"
            ) from None


def bytes_of(model: nn.Module) -> int:
    """Of its weights in memory."""
    return sum(int(array.nbytes) for _, array in tree_flatten(model.parameters()))


def position_limit(config: dict[str, Any]) -> int | None:
    """The most positions that a model's `config.json` says it was made for; None where it says nothing."""
    inner = config.get("text_config")
    limit = (inner if isinstance(inner, dict) else config).get("max_position_embeddings")
    return limit if isinstance(limit, int) and limit > 0 else None


def _tokenizer_fingerprint(tokenizer: Any) -> str:
    digest = hashlib.sha256()
    for token, i in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        digest.update(f"{i}:{token}\n".encode("utf-8", "surrogatepass"))
    digest.update(f"{tokenizer.bos_token_id}/{tokenizer.eos_token_id}".encode())
    return digest.hexdigest()


_WAYS = {
    "trim": "trimmed",
    "local": "states put back, recurrent layers read again",
    "eager": "states put back, the model reads again",
}


def describe_caches(pair: Pair) -> str:
    """How both models' caches take rejected tokens back, for a person."""
    said = [f"{cache_kinds(model)}: {_WAYS[rewinding_of(model).way]}" for model in (pair.target, pair.draft)]
    return said[0] if said[0] == said[1] else f"target {said[0]}, draft {said[1]}"


def cache_kinds(model: nn.Module) -> str:
    """The names of a model's cache types, for a person."""
    return " and ".join(sorted({type(cache).__name__ for cache in make_prompt_cache(model)}))
