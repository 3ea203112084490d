"""draftloop is speculative decoding on MLX whose draft model learns from its own rejected tokens.

The public API, in the order of the stages. Each name is imported when it is first used, so this module needs no mlx:

    prepare_process()
    config, data = Config(), DataDirectory(Path("data"))
    pair = load_pair(config.models)
    collect_data(pair, prompts, data.log, CollectSettings(decoding_settings(config.speculative)))
    train(pair, data, config)
    heldout = logged_samples(data.log.records({"heldout"}), pair, data.log.groups().group_of)
    compare(pair, heldout, "auto", [1, 2, 4, 8], ("latest", data.registry.resolve("latest")), seed=0)
    data.registry.promote("latest")
    generate(pair, prompt, settings, chat_template=True, max_prompt_length=2048)

`draftloop.retraining.retrain(data, config)` does all of this unattended, except collecting. On a Linux CPU
`prepare_process` puts a fast BLAS under MLX, which must not be imported before; elsewhere it does nothing.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = "0.1.0"
