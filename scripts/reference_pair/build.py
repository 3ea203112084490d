"""Build the embedded pair from nothing but this Python's standard library: tokenizer, target, draft, prompts, card.

    python -m scripts.reference_pair.build [--out DIR] [--target-steps N] [--draft-steps N]

The target reads prose and code in equal parts, the draft code alone. One process a core trains on its share of each
batch (MLX's CPU backend uses one core for everything but matrix products) and the gradients are averaged in shared
memory in a fixed order, so that the same seed, Python and core count give the same weights.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from draftloop import prepare_process
from draftloop.reference import DOMAINS, PROMPTS, ROOT, Domain

from . import openings
from .corpus import Document, Part, documents

VOCABULARY = 2048
END_OF_TEXT = "<|endoftext|>"  # id 0; stands between documents
CONTEXT = 256  # tokens a training row
BATCH = 8  # rows a step, over all processes


@dataclass(frozen=True)
class Recipe:
    """One model: Llama's shape, the domains it reads, and how long."""

    name: str
    width: int
    layers: int
    heads: int
    feed_forward: int
    domains: tuple[Domain, ...]
    steps: int
    learning_rate: float
    warmup: int = 100
    weight_decay: float = 0.1
    clip: float = 1.0
    evaluate_every: int = 200

    def config(self) -> dict[str, Any]:
        """The `config.json` that mlx-lm reads."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "intermediate_size": self.feed_forward,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "head_dim": self.width // self.heads,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "max_position_embeddings": 2 * CONTEXT,
            "vocab_size": VOCABULARY,
            "tie_word_embeddings": True,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "torch_dtype": "float16",
        }


TARGET = Recipe("target", 320, 8, 5, 832, ("prose", "code"), steps=2200, learning_rate=2e-3)
DRAFT = Recipe("draft", 192, 1, 3, 512, ("code",), steps=4000, learning_rate=4e-3)


# -- tokens -----------------------------------------------------------------------------------------------------------


def train_tokenizer(texts: Iterator[str]) -> str:
    """Byte-level BPE over `texts`, as the JSON text of `tokenizer.json`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return str(tokenizer.to_str(pretty=False))


def encode(tokenizer_json: str, found: list[Document], domain: Domain, part: Part, seed: int) -> NDArray[np.uint16]:
    """All documents of one domain and part as one stream of ids, each ended by END_OF_TEXT, in seeded order."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)
    texts = [document.text for document in found if (document.domain, document.part) == (domain, part)]
    order = np.random.default_rng(seed).permutation(len(texts))
    ids: list[int] = []
    for encoding in tokenizer.encode_batch([texts[i] for i in order]):
        ids.extend(encoding.ids)
        ids.append(0)
    return np.asarray(ids, dtype=np.uint16)


def rows_forever(stream: NDArray[np.uint16], seed: int) -> Iterator[NDArray[np.uint16]]:
    """Rows of CONTEXT + 1 ids: every epoch cuts the stream at a new offset and shuffles the cuts."""
    rng = np.random.default_rng(seed)
    while True:
        offset = int(rng.integers(CONTEXT))
        count = (len(stream) - offset - 1) // CONTEXT
        for i in rng.permutation(count):
            start = offset + int(i) * CONTEXT
            yield stream[start : start + CONTEXT + 1]


# -- training ---------------------------------------------------------------------------------------------------------


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then half a cosine down to a fiftieth of the peak."""
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def _train_worker(
    rank: int, world: int, shared: str, size: int, barrier: Any, recipe: Recipe, streams: Path, out: Path, seed: int
) -> None:
    """One of `world` processes: its rows of every batch, the mean of all gradients, the same update as the others."""
    prepare_process()
    import mlx.core as mx
    import mlx.nn as nn
    import mlx.optimizers as optim
    from mlx.utils import tree_flatten, tree_unflatten
    from mlx_lm.models.llama import Model, ModelArgs

    # 1. The same weights in every process.
    mx.random.seed(seed)
    model = Model(ModelArgs.from_dict(recipe.config()))
    optimizer = optim.AdamW(recipe.learning_rate, betas=[0.9, 0.95], weight_decay=recipe.weight_decay)
    parameters = tree_flatten(model.trainable_parameters())
    if sum(value.size for _, value in parameters) != size:
        raise ValueError("the shared gradient buffer was sized for another model")

    def loss_of(model: nn.Module, rows: mx.array) -> mx.array:
        return nn.losses.cross_entropy(model(rows[:, :-1]), rows[:, 1:], reduction="mean")  # rows: (B, CONTEXT + 1)

    loss_and_gradient = nn.value_and_grad(model, loss_of)
    memory = SharedMemory(name=shared)
    buffer: NDArray[np.float32] = np.ndarray((world, size + 1), np.float32, memory.buf)  # gradients, then the loss

    # 2. Data: the domains in equal parts; validation rows from modules that were held out.
    share = BATCH // world
    feeds = [rows_forever(np.load(streams / f"{d}.train.npy"), seed + i) for i, d in enumerate(recipe.domains)]
    held_out = {}
    for domain in DOMAINS:
        stream = np.load(streams / f"{domain}.benchmark.npy")
        count = min(24, (len(stream) - 1) // CONTEXT)
        stride = (len(stream) - CONTEXT - 1) // count
        held_out[domain] = np.stack([stream[i * stride : i * stride + CONTEXT + 1] for i in range(count)])

    def held_out_losses() -> dict[str, float]:
        return {
            domain: float(np.mean([loss_of(model, mx.array(part.astype(np.int32))).item() for part in np.split(r, 3)]))
            for domain, r in held_out.items()
        }

    # 3. Steps.
    curve: list[dict[str, float]] = []
    began = time.time()
    recent: list[float] = []
    for step in range(recipe.steps):
        batch = np.stack([next(feeds[i % len(feeds)]) for i in range(BATCH)])[rank * share : (rank + 1) * share]
        loss, gradient = loss_and_gradient(model, mx.array(batch.astype(np.int32)))
        mx.eval(loss, gradient)
        flat = tree_flatten(gradient)
        at = 0
        for _, value in flat:
            buffer[rank, at : at + value.size] = np.array(value, copy=False).reshape(-1)
            at += value.size
        buffer[rank, at] = loss.item()
        barrier.wait()
        mean = buffer.sum(axis=0) / world
        barrier.wait()
        norm = float(np.linalg.norm(mean[:-1]))
        if not (math.isfinite(norm) and math.isfinite(float(mean[-1]))):
            raise FloatingPointError(f"{recipe.name}: loss {mean[-1]} with gradient norm {norm} at step {step}")
        mean[:-1] *= min(1.0, recipe.clip / (norm + 1e-6))
        at, averaged = 0, []
        for key, value in flat:
            averaged.append((key, mx.array(mean[at : at + value.size]).reshape(value.shape)))
            at += value.size
        optimizer.learning_rate = mx.array(learning_rate(recipe, step))
        optimizer.update(model, tree_unflatten(averaged))
        mx.eval(model.parameters(), optimizer.state)
        recent.append(float(mean[-1]))
        last = step + 1 == recipe.steps
        if rank == 0 and (last or (step + 1) % recipe.evaluate_every == 0):
            point = {
                "step": step + 1,
                "tokens": (step + 1) * BATCH * CONTEXT,
                "seconds": round(time.time() - began, 1),
                "train_loss": round(float(np.mean(recent)), 4),
                **{f"{domain}_loss": round(value, 4) for domain, value in held_out_losses().items()},
            }
            recent.clear()
            curve.append(point)
            print(f"{recipe.name} {json.dumps(point)}", flush=True)
            half = {key: value.astype(mx.float16) for key, value in tree_flatten(model.parameters())}
            partial = out / "model.partial.safetensors"
            mx.save_safetensors(str(partial), half, metadata={"format": "mlx"})
            partial.replace(out / "model.safetensors")
            (out / "curve.json").write_text(json.dumps({"parameters": size, "curve": curve}))
    memory.close()


def train(recipe: Recipe, streams: Path, out: Path, seed: int, processes: int) -> dict[str, Any]:
    """Train one model into `out`; returns its parameter count and curve."""
    size = _parameter_count(recipe)
    context = multiprocessing.get_context("spawn")
    memory = SharedMemory(create=True, size=processes * (size + 1) * 4)
    os.environ["OPENBLAS_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // processes))
    try:
        barrier = context.Barrier(processes)
        workers = [
            context.Process(
                target=_train_worker,
                args=(rank, processes, memory.name, size, barrier, recipe, streams, out, seed),
            )
            for rank in range(processes)
        ]
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers):
            for worker in workers:
                worker.join(timeout=1)
                if worker.exitcode not in (None, 0):
                    barrier.abort()  # the others wait for gradients that will not come
        if any(worker.exitcode != 0 for worker in workers):
            raise RuntimeError(f"{recipe.name}: a training process ended with {[w.exitcode for w in workers]}")
    finally:
        memory.close()
        memory.unlink()
    result: dict[str, Any] = json.loads((out / "curve.json").read_text())
    (out / "curve.json").unlink()
    return result


def _parameter_count(recipe: Recipe) -> int:
    layer = 4 * recipe.width**2 + 3 * recipe.width * recipe.feed_forward + 2 * recipe.width
    return VOCABULARY * recipe.width + recipe.layers * layer + recipe.width


# -- what is written -------------------------------------------------------------------------------------------------


def write_model_files(recipe: Recipe, tokenizer_json: str, out: Path) -> None:
    """Everything but the weights, as mlx-lm and transformers read it."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(recipe.config(), indent=2) + "\n")
    (out / "tokenizer.json").write_text(tokenizer_json)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "model_max_length": 2 * CONTEXT,
        "clean_up_tokenization_spaces": False,
        "chat_template": "{% for message in messages %}{{ message['content'] }}{% endfor %}",
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def card(facts: dict[str, Any]) -> str:
    """The model card, every number of it from `facts`."""
    lines = [
        "# The embedded pair",
        "",
        "A target and a draft small enough to travel with the code, trained from nothing on the text that every Python",
        "carries. They stand in for a real pair in `make demo`, the tests and the benchmarks: the target knows two",
        "domains, the draft one. They are language models of Python's own library and good for nothing else.",
        "",
        "Rebuild with `make reference`. The file beside this one, `card.json`, holds the same numbers.",
        "",
        "## Data",
        "",
        f"The standard library of Python {facts['python']} ({facts['platform']}), tests left out. *Code* is its source",
        "without docstrings and comments; *prose* is those docstrings, blocks of comments, and the topics of `help()`.",
        "One module in sixteen gives the prompts for collecting, another one in sixteen those for the benchmark and",
        "the held-out rows of the curves; neither model has read them.",
        "",
        "| domain | part | documents | characters | tokens | sha256 of the text |",
        "|---|---|---|---|---|---|",
    ]
    for row in facts["data"]:
        lines.append(
            f"| {row['domain']} | {row['part']} | {row['documents']} | {row['characters']:,} | {row['tokens']:,} "
            f"| `{row['sha256'][:16]}` |"
        )
    lines += ["", f"Tokenizer: byte-level BPE, {VOCABULARY:,} ids, trained on both domains' training parts.", ""]
    for name in ("target", "draft"):
        model = facts[name]
        recipe = model["recipe"]
        lines += [
            f"## {name.capitalize()}",
            "",
            (
                f"Llama-shaped, {recipe['layers']} × {recipe['width']}, {model['parameters']:,} parameters, float16 on "
                f"disk. Reads {' and '.join(recipe['domains'])}. AdamW, peak learning rate {recipe['learning_rate']}, "
                f"warm-up {recipe['warmup']}, cosine; {BATCH} × {CONTEXT} tokens a step, {recipe['steps']:,} steps, "
                f"{model['curve'][-1]['tokens']:,} tokens, {model['curve'][-1]['seconds'] / 60:.0f} minutes on "
                f"{facts['processes']} cores."
            ),
            "",
            "| step | tokens | train loss | prose, held out | code, held out |",
            "|---|---|---|---|---|",
        ]
        for point in model["curve"]:
            losses = (f"{point[key]:.3f}" for key in ("train_loss", "prose_loss", "code_loss"))
            lines.append(f"| {point['step']:,} | {point['tokens']:,} | {' | '.join(losses)} |")
        lines.append("")
    lines += [f"Losses are mean cross-entropy in nats a token. Seed {facts['seed']}; MLX {facts['mlx']}.", ""]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Build both models, or the one that `--only` names, into `--out`."""
    parser = argparse.ArgumentParser(prog="scripts.reference_pair.build", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT)
    parser.add_argument("--target-steps", type=int, default=TARGET.steps)
    parser.add_argument("--draft-steps", type=int, default=DRAFT.steps)
    parser.add_argument("--only", choices=["target", "draft"], help="train one model, keep the other as it is")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1), choices=[1, 2, 4, 8])
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="draftloop-reference-") as streams:
        _build(options, Path(streams))


def _build(options: argparse.Namespace, streams: Path) -> None:
    """Text to ids in `streams`, then prompts, models and card in `options.out`."""
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)

    # 1. Text, tokenizer, streams of ids, prompts.
    found = documents()
    trained_on = (d.text for d in found if d.part == "train")
    tokenizer_json = train_tokenizer(trained_on)
    data = []
    taken: list[str] = []
    parts: tuple[Part, ...] = ("train", "collect", "benchmark")
    for domain in DOMAINS:
        for part in parts:
            ids = encode(tokenizer_json, found, domain, part, options.seed)
            np.save(streams / f"{domain}.{part}.npy", ids)
            texts = [d.text for d in found if (d.domain, d.part) == (domain, part)]
            data.append(
                {
                    "domain": domain,
                    "part": part,
                    "documents": len(texts),
                    "characters": sum(map(len, texts)),
                    "tokens": len(ids),
                    "sha256": hashlib.sha256("\0".join(texts).encode()).hexdigest(),
                }
            )
            if part != "train":
                chosen = openings.choose(found, domain, part, options.seed, taken)
                taken += chosen
                openings.write(chosen, out / PROMPTS.name / f"{domain}.{part}.jsonl")
    print(json.dumps(data, indent=1), file=sys.stderr, flush=True)

    # 2. The models. The draft first: it is quick, and a mistake shows early.
    known = json.loads((out / "card.json").read_text()) if options.only else {}
    for recipe, steps in ((DRAFT, options.draft_steps), (TARGET, options.target_steps)):
        if options.only not in (None, recipe.name):
            continue
        recipe = Recipe(**{**asdict(recipe), "steps": steps, "domains": tuple(recipe.domains)})
        write_model_files(recipe, tokenizer_json, out / recipe.name)
        result = train(recipe, streams, out / recipe.name, options.seed, options.processes)
        known[recipe.name] = {"recipe": asdict(recipe), **result}

    # 3. The card.
    import mlx.core as mx

    known |= {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "mlx": mx.__version__,
        "seed": options.seed,
        "processes": options.processes,
        "data": data,
    }
    (out / "card.json").write_text(json.dumps(known, indent=1) + "\n")
    (out / "CARD.md").write_text(card(known))


if __name__ == "__main__":
    main()
