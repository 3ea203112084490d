"""What caches cost that take tokens back, in turns: python benchmarks/speed_caches.py

Of tiny recurrent and hybrid models: a verification of 5 tokens of which 2 are taken back, over one of which none is. Of
windows: a verification of 5 tokens with a full window of 4,096, over one with a plain cache of as many tokens. Models
are random ones of mlx-lm's own classes.
"""

from __future__ import annotations

import prepared  # noqa: F401

# isort: split
import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import results
from mlx import nn
from mlx_lm.models.llama import Model, ModelArgs
from results import Figure

from draftloop.caches import new_cache, rewinding_of
from draftloop.cli.tables import print_table

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the zoo is no part of the package
from scripts import model_zoo

RECURRENT = ("qwen3_5", "qwen3_next", "falcon_h1", "lfm2", "nemotron_h", "mamba2", "rwkv7")
PASS, BACK, PREFIX = 5, 2, 256
WINDOW, BEYOND = 4096, 8  # tokens; read before, beyond the window: it is full
REPEATS = 200
AT_MOST_BACK, AT_MOST_WINDOW = 1.5, 1.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few repeats to try the script; writes no results")
    quick = parser.parse_args().quick
    repeats = 5 if quick else REPEATS
    rows = []
    for name in RECURRENT[:1] if quick else RECURRENT:
        model = model_zoo.build(name)
        back, none = (_verifying(model, PREFIX, taken) for taken in (BACK, 0))
        ratio, seconds = in_turns(back, none, repeats)
        what = f"{PASS} tokens verified, {BACK} taken back over none"
        rows.append({"what": what, "model": name, "way": rewinding_of(model).way, "ms": seconds, "ratio": ratio})
    window = _verifying(_llama(windows=True), WINDOW + BEYOND, PASS)
    plain = _verifying(_llama(windows=False), WINDOW + BEYOND, PASS)
    ratio, seconds = in_turns(window, plain, repeats)
    what = f"{PASS} tokens verified, a window of {WINDOW:,} over a plain cache of as many"
    rows.append({"what": what, "model": "llama", "way": "trim", "ms": seconds, "ratio": ratio})
    print_table(list(rows[0]), [list(row.values()) for row in rows])
    figures = [
        Figure(f"{rows[0]['what']}, qwen3_5", float(str(rows[0]["ratio"])), "x", at_most=AT_MOST_BACK),
        Figure(str(rows[-1]["what"]), float(str(rows[-1]["ratio"])), "x", at_most=AT_MOST_WINDOW),
    ]
    if not quick:
        results.write("speed_caches", {"repeats": repeats}, figures, rows=rows)


def in_turns(work: Callable[[], float], other: Callable[[], float], repeats: int) -> tuple[float, float]:
    """Seconds of one over those of the other, median over repeats that take turns; and milliseconds of the other."""
    pairs = [(work(), other()) for _ in range(repeats + 3)][3:]
    return round(statistics.median(a / b for a, b in pairs), 3), round(1e3 * statistics.median(b for _, b in pairs), 3)


def _verifying(model: nn.Module, prefix: int, back: int) -> Callable[[], float]:
    """Seconds of a verification that begins at the same place each time: what is kept is taken back in between."""
    cache = new_cache(model, PASS)
    cache.prefill(mx.arange(prefix, dtype=mx.uint32) % model_zoo.VOCABULARY, 512)
    tokens = mx.arange(PASS, dtype=mx.uint32)

    def seconds() -> float:
        began = time.perf_counter()
        mx.eval(cache.read(tokens))
        cache.rewind(back)
        cache.evaluate()
        taken = time.perf_counter() - began
        cache.rewind(PASS - back)
        cache.evaluate()
        cache.settle()
        return taken

    return seconds


def _llama(*, windows: bool) -> nn.Module:
    layers = 8
    kinds = ["full_attention", *["sliding_attention" if windows else "full_attention"] * (layers - 1)]
    arguments = ModelArgs(
        model_type="llama",
        hidden_size=256,
        num_hidden_layers=layers,
        intermediate_size=512,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        rms_norm_eps=1e-5,
        vocab_size=model_zoo.VOCABULARY,
        layer_types=kinds,  # mlx-lm wants one of them full
        sliding_window=WINDOW if windows else None,
    )
    mx.random.seed(0)
    model = Model(arguments)
    mx.eval(model.parameters())
    return model


if __name__ == "__main__":
    main()
