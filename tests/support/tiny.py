"""Real but tiny models for tests: random Llamas of a few thousand weights, in float32, seeded."""

from __future__ import annotations

from functools import cache

import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm.models.llama import Model, ModelArgs
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from draftloop.data.records import PairId, Sampler
from draftloop.models.pair import Pair


def tiny_llama(
    vocabulary: int = 64,
    width: int = 32,
    layers: int = 2,
    seed: int = 0,
    sharpness: float = 4.0,
    tied: bool = False,
) -> Model:
    """A random Llama; `sharpness` scales its weights, so that its distributions are far from uniform."""
    arguments = ModelArgs(
        model_type="llama",
        hidden_size=width,
        num_hidden_layers=layers,
        intermediate_size=2 * width,
        num_attention_heads=2,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        vocab_size=vocabulary,
        head_dim=width // 2,
        tie_word_embeddings=tied,
    )
    mx.random.seed(seed)
    model = Model(arguments)
    model.update(tree_map(lambda value: value * sharpness if value.ndim > 1 else value, model.parameters()))
    mx.eval(model.parameters())
    model.eval()
    model.freeze()
    return model


def tiny_pair(
    vocabulary: int = 64,
    draft_vocabulary: int | None = None,
    *,
    stop_tokens: frozenset[int] = frozenset(),
    context: int | None = None,
    likeness: float = 0.0,
) -> Pair:
    """Two random Llamas over the same ids; `likeness` moves the draft's weights towards the target's (1 is a twin)."""
    target = tiny_llama(vocabulary, seed=1)
    draft = tiny_llama(draft_vocabulary or vocabulary, seed=2)
    if likeness:
        mixed = tree_map(lambda a, b: likeness * a + (1 - likeness) * b, target.parameters(), draft.parameters())
        draft.update(mixed)
        mx.eval(draft.parameters())
    return Pair(
        target=target,
        draft=draft,
        tokenizer=word_tokenizer(vocabulary),
        identity=PairId("target", "draft", "tokenizer"),
        width=min(vocabulary, draft_vocabulary or vocabulary),
        stop_tokens=stop_tokens,
        context=context,
    )


@cache
def word_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Every id spells a number or a word of its own in sentencepiece's way, with a blank before it or without."""
    words = {f"{'▁' if i % 3 else ''}{i if i % 4 == 0 else f'w{i}'}": i for i in range(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=next(iter(words))))
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def sampler(temperature: float = 0.8, top_p: float = 1.0, min_p: float = 0.0, top_k: int = 0, seed: int = 0) -> Sampler:
    """A sampler with everything off but the temperature."""
    return Sampler(temperature=temperature, top_p=top_p, min_p=min_p, top_k=top_k, seed=seed)
