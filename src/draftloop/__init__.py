"""draftloop: collect -> replay -> train -> candidate -> champion -> collect: a draft that learns from rejections.

The public API, in the order of the stages; each name is imported when it is first used, so this module needs no mlx:

    pair = load_pair(Config().models)
    collect_data(pair, prompts, FailureLog(path), CollectSettings(decoding_settings(config.speculative)))
    train(pair, log, ReplayBuffer(folder, capacity), Registry(folder), config, runs)
    compare(pair, samples, "auto", [1, 2, 4, 8], (name, adapter_directory), seed=0)
    generate(pair, prompt, settings, chat_template=True, max_prompt_length=2048)
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from . import blas

blas.preload()  # here, because it must come before the first import of mlx by any module, in whatever order

__version__ = "0.1.0"

_HOMES = {
    "Config": "config",
    "load_pair": "pair",
    "decoding_settings": "text",
    "collect_data": "collect",
    "CollectSettings": "collect",
    "FailureLog": "store.log",
    "ReplayBuffer": "replay",
    "train": "training.train",
    "resume": "training.train",
    "Registry": "registry",
    "logged_samples": "benchmark",
    "compare": "benchmark",
    "generate": "text",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
