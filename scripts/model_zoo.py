"""A tiny random model of every text model that mlx-lm defines: what `make models` and the tests of caches work on.

A module of `mlx_lm.models` is built from its own `ModelArgs`. Fields that have no default get a tiny value by their
name (`TINY`), and some modules need a few values of their own (`OWN`): layers of each kind that they have, a window and
chunks of 16 tokens. Variants are further configurations of a module. Nothing here says what a model can do.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx_lm.models
from mlx import nn
from mlx.utils import tree_map_with_path

VOCABULARY, WINDOW = 101, 16
SLIDING, FULL, LINEAR = "sliding_attention", "full_attention", "linear_attention"

BASE: dict[str, Any] = {  # given to every module that has such a field
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "attention_bias": False,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}
LATENT = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
GATED_DELTA = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
}
MAMBA = {
    "num_heads": 8,
    "state_size": 16,
    "conv_kernel": 4,
    "n_groups": 2,
    "use_bias": False,
    "use_conv_bias": True,
    "time_step_limit": (0.001, 100.0),
    "time_step_rank": "auto",
    "layer_norm_epsilon": 1e-5,
}
TINY: dict[str, Any] = {  # given where a field has no default
    **EXPERTS,
    **LATENT,
    **GATED_DELTA,
    **MAMBA,
    "attention_multiplier": 0.25,
    "conv_L_cache": 3,
    "conv_bias": False,
    "decoder_sparse_step": 1,
    "dim_model_base": 64,
    "embedding_multiplier": 1.0,
    "expert_ffn_hidden_size": 32,
    "ffn_hidden_size": 96,
    "first_k_dense_replace": 1,
    "group_norm_size": 2,
    "hidden_act": "silu",
    "hidden_dim": 96,
    "layer_group_size": 2,
    "layer_norm_eps": 1e-5,
    "logits_scaling": 1.0,
    "mla_scale_kv_lora": True,
    "mla_scale_q_lora": True,
    "mlp_bias": False,
    "mlp_only_layers": [],
    "model_max_length": 4096,
    "moe_layer_freq": 1,
    "moe_topk": 2,
    "n_ctx": 4096,
    "n_embd": 64,
    "n_group": 1,
    "n_head": 4,
    "n_heads": 4,
    "n_inner": 96,
    "n_kv_heads": 2,
    "n_layer": 3,
    "n_layers": 3,
    "n_positions": 4096,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "norm_eps": 1e-5,
    "num_dense_layers": 1,
    "num_kv_heads": 2,
    "num_layers": 3,
    "num_local_experts": 4,
    "num_shared_experts": 1,
    "partial_rotary_factor": 0.5,
    "qk_norm": True,
    "residual_multiplier": 1.0,
    "rope_scaling": None,
    "routed_scaling_factor": 1.0,
    "scale_depth": 1.0,
    "scale_emb": 1.0,
    "scoring_func": "sigmoid",
    "shared_expert_intermediate_size": 32,
    "sliding_window": WINDOW,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "use_qk_norm": True,
    "zero_expert_num": 1,
}
FOUR = {"num_hidden_layers": 4}
WINDOWED = {**FOUR, "sliding_window": WINDOW, "layer_types": [SLIDING, FULL, SLIDING, FULL]}
BY_KIND = {
    SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
    FULL: {"rope_type": "default", "rope_theta": 50_000.0},
}
KIMI = {"kda_layers": [1, 3], "full_attn_layers": [2, 4], "num_heads": 4, "head_dim": 16, "short_conv_kernel_size": 4}
CONVOLUTIONS = {**FOUR, "layer_types": ["conv", FULL, "conv", FULL]}
OWN: dict[str, dict[str, Any]] = {
    # recurrent states
    "qwen3_next": {**FOUR, "full_attention_interval": 2},
    "qwen3_5": {**FOUR, "full_attention_interval": 2, **GATED_DELTA},
    "qwen3_5_moe": {
        **FOUR,
        "full_attention_interval": 2,
        "shared_expert_intermediate_size": 32,
        **GATED_DELTA,
        **EXPERTS,
    },
    "mamba": {"state_size": 8, "time_step_rank": 4},
    "jamba": {
        **FOUR,
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
        "mamba_d_conv": 4,
        "mamba_d_state": 8,
        "mamba_expand": 2,
    },
    "falcon_h1": {
        "mamba_d_head": 16,
        "mamba_d_ssm": 64,
        "mamba_d_state": 16,
        "mamba_n_groups": 1,
        "mamba_n_heads": 4,
    },
    "nemotron_h": {
        "num_hidden_layers": 6,
        "hybrid_override_pattern": list("M*-M*E"),
        "mamba_num_heads": 8,
        "mamba_head_dim": 16,
        "mamba_proj_bias": False,
        "ssm_state_size": 16,
        "moe_shared_expert_intermediate_size": 32,
        **MAMBA,
        **EXPERTS,
        "n_group": 1,
        "topk_group": 1,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "routed_scaling_factor": 1.0,
    },
    "granitemoehybrid": {
        **FOUR,
        "layer_types": ["mamba", "attention", "mamba", "attention"],
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 32,
        "mamba_n_heads": 8,
        "mamba_d_head": 16,
        "mamba_proj_bias": False,
        "mamba_d_state": 16,
        "mamba_d_conv": 4,
        "mamba_n_groups": 1,
        "mamba_conv_bias": True,
        "position_embedding_type": "nope",
    },
    "lfm2": {
        **CONVOLUTIONS,
        "block_dim": 64,
        "block_multiple_of": 8,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
    },
    "lfm2_moe": {**CONVOLUTIONS, "use_expert_bias": True},
    "kimi_linear": {**FOUR, **LATENT, "linear_attn_config": KIMI, "mla_use_nope": True, "num_experts_per_token": 2},
    "kimi_k3": {
        **FOUR,
        **LATENT,
        **EXPERTS,
        "linear_attn_config": {**KIMI, "gate_lower_bound": -5.0},
        "activation_situ_beta": 1.0,
        "activation_situ_linear_beta": 1.0,
        "attn_res_block_size": 2,
        "num_experts_per_token": 2,
        "num_shared_experts": 1,
        "first_k_dense_replace": 1,
        "routed_expert_hidden_size": 32,
        "mla_use_output_gate": True,
    },
    "recurrent_gemma": {
        **FOUR,
        "conv1d_width": 4,
        "logits_soft_cap": 30.0,
        "attention_window_size": WINDOW,
        "block_types": ["recurrent", "attention"],
    },
    "rwkv7": {"a_low_rank_dim": 8, "v_low_rank_dim": 8, "gate_low_rank_dim": 8, "decay_low_rank_dim": 8},
    "olmo_hybrid": {**FOUR, "linear_allow_neg_eigval": True, "layer_types": [LINEAR, FULL, LINEAR, FULL]},
    "plamo2": {
        **FOUR,
        "hidden_size_per_head": 16,
        "mamba_d_state": 16,
        "mamba_d_conv": 4,
        "mamba_num_heads": 8,
        "mamba_step": 2,
    },
    "baichuan_m1": {**FOUR, "sliding_window_layers": [1, 3], "conv_window": 2},
    "bailing_moe_linear": FOUR,
    "bailing_hybrid": {**FOUR, **LATENT},
    "bailing_moe_v3": {**FOUR, **LATENT, **EXPERTS, "moe_shared_expert_intermediate_size": 32, "layer_group_size": 2},
    "gear": {**WINDOWED, "layer_types": ["conv_mixer", SLIDING, "conv_mixer", FULL]},
    "longcat_flash_ngram": {
        "num_layers": 2,
        "num_hidden_layers": 2,
        "ngram_vocab_size_ratio": 3,
        "emb_neighbor_num": 3,
        "emb_split_num": 2,
    },
    # windows
    "gpt_oss": {**WINDOWED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gemma3_text": {
        **FOUR,
        "query_pre_attn_scalar": 16,
        "sliding_window": WINDOW,
        "sliding_window_pattern": 2,
        "rope_local_base_freq": 10_000.0,
    },
    "gemma3n": {
        "num_hidden_layers": 6,
        "intermediate_size": [96] * 6,
        "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": VOCABULARY,
        "sliding_window": WINDOW,
        "rope_local_base_freq": 10_000.0,
        "final_logit_softcapping": 30.0,
        "layer_types": [SLIDING, FULL] * 3,
        "activation_sparsity_pattern": [0.0] * 6,
        "hidden_size_per_layer_input": 16,
        "altup_num_inputs": 2,
        "altup_coef_clip": 120.0,
        "altup_correct_scale": True,
        "altup_active_idx": 0,
        "laurel_rank": 8,
    },
    "gemma4_text": {
        "num_hidden_layers": 6,
        "num_kv_shared_layers": 2,
        "global_head_dim": 32,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 16,
        "sliding_window": WINDOW,
        "sliding_window_pattern": 2,
        "layer_types": [SLIDING, FULL] * 3,
    },
    "cohere2": {**FOUR, "sliding_window": WINDOW, "sliding_window_pattern": 2, "logit_scale": 1.0},
    "exaone4": {**FOUR, "sliding_window": WINDOW, "sliding_window_pattern": "LG"},
    "exaone_moe": {**WINDOWED, "is_moe_layer": [False, True, False, True]},
    "olmo3": WINDOWED,
    "ministral3": {
        **WINDOWED,
        "rope_parameters": {
            "rope_theta": 10_000.0,
            "rope_type": "default",
            "type": "default",
            "original_max_position_embeddings": 4096,
            "llama_4_scaling_beta": 0.1,
        },
    },
    "mimo_v2_flash": {
        **FOUR,
        "hybrid_layer_pattern": [1, 0, 1, 0],
        "moe_layer_freq": [0, 1, 0, 1],
        "add_swa_attention_sink_bias": True,
        "add_full_attention_sink_bias": False,
        "sliding_window_size": WINDOW,
        "n_shared_experts": None,
        "layernorm_epsilon": 1e-5,
        "swa_rope_theta": 10_000.0,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "v_head_dim": 16,
        "swa_head_dim": 16,
        "swa_v_head_dim": 16,
        "partial_rotary_factor": 1.0,
    },
    "step3p5": {
        **WINDOWED,
        "num_attention_groups": 2,
        "partial_rotary_factors": [1.0] * 4,
        "attention_other_setting": {"num_attention_heads": 4, "num_attention_groups": 2},
        "moe_num_experts": 4,
        "moe_top_k": 2,
        "moe_intermediate_size": 32,
        "share_expert_dim": 32,
        "moe_layers_enum": "1,3",
    },
    "afmoe": WINDOWED,
    "plamo3": {**FOUR, "window_size": WINDOW, "sliding_window_pattern": 2},
    "laguna": {**WINDOWED, **EXPERTS, "shared_expert_intermediate_size": 32, "rope_parameters": BY_KIND},
    "mellum": {**WINDOWED, **EXPERTS, "rope_parameters": BY_KIND},
    "spark2_5": {**WINDOWED, "rope_parameters": BY_KIND},
    "muse_glimmer": {**WINDOWED, "output_multiplier": 1.0, "qk_scale_factor": 1.0},
    "iquestloopcoder": {"loop_num": 2, "loop_window_size": WINDOW},
    # chunks, and caches of several parts
    "llama4": {
        **FOUR,
        "attention_chunk_size": WINDOW,
        "interleave_moe_layer_step": 2,
        "intermediate_size_mlp": 96,
        "num_experts_per_tok": 1,
        "num_local_experts": 4,
        "rope_scaling": None,
        "use_qk_norm": True,
    },
    "deepseek_v32": {
        **LATENT,
        "index_head_dim": 16,
        "index_n_heads": 2,
        "index_topk": 32,
        "n_shared_experts": 1,
        "n_routed_experts": 4,
        "moe_intermediate_size": 32,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
    },
    "minimax_m3_vl": {
        "dense_intermediate_size": 96,
        "shared_intermediate_size": 32,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "moe_layer_freq": [0, 1, 1],
        "sparse_attention_config": {
            "sparse_num_index_heads": 2,
            "sparse_index_dim": 16,
            "sparse_block_size": 8,
            "sparse_topk_blocks": 2,
            "sparse_local_block": 1,
            "sparse_attention_freq": [0, 1, 1],
        },
    },
    "deepseek_v41": {
        **FOUR,
        "head_dim": 32,
        "q_lora_rank": 32,
        "qk_rope_head_dim": 8,
        "o_groups": 2,
        "o_lora_rank": 16,
        "moe_intermediate_size": 32,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": WINDOW,
        "compress_ratios": (0, 4, 4, 2),
        "kv_source_layer_ids": (1, 3),
        "index_source_layer_ids": (1, 3),
        "compress_rope_theta": 10_000.0,
        "index_n_heads": 2,
        "index_head_dim": 32,
        "index_topk": 8,
        "hc_mult": 2,
        "hc_sinkhorn_iters": 4,
    },
}
YARN = {
    "type": "yarn",
    "factor": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32,
    "beta_slow": 1,
}
ROPE = {"rope_type": "default", "type": "default", "rope_theta": 10_000.0}
OWN |= {  # keys and values alone, where a field's name is the module's own
    "afm7": {"num_heads": 4, "num_kv_reuse_layers": 1},
    "apertus": {"post_norm": False},
    "dbrx": {
        "d_model": 64,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10_000.0},
        "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {**LATENT, "moe_intermediate_size": 32, "rope_scaling": YARN},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32, "moe_layer_start_index": 1},
    "glm_moe_dsa": {"index_head_dim": 16, "index_n_heads": 2, "index_topk": 32, "rope_parameters": ROPE},
    "gpt_neox": {"rotary_emb_base": 10_000, "rotary_pct": 0.5, "num_key_value_heads": 4},
    "gptj": {"n_embd": 64, "n_head": 4, "n_layer": 3, "rotary_dim": 8},
    "hunyuan": {
        "num_shared_expert": 1,
        "use_mixed_mlp_moe": True,
        "use_cla": True,
        "cla_share_factor": 2,
        "rope_scaling": {"type": "dynamic", "factor": 1.0, "alpha": 1.0},
        "num_hidden_layers": 4,
    },
    "lille-130m": {"block_size": 4096},
    "llama4_text": {"intermediate_size_mlp": 96, "no_rope_layers": [1, 0, 1]},
    "longcat_flash": {"attention_method": "MLA", "zero_expert_type": "identity", "num_layers": 2},
    "minicpm3": {
        "rope_scaling": {"original_max_position_embeddings": 4096, "short_factor": [1.0] * 4, "long_factor": [1.0] * 4}
    },
    "minimax": {"shared_intermediate_size": 96, "rotary_dim": 8},
    "mistral4": {
        "rope_parameters": {**YARN, "rope_theta": 10_000.0, "llama_4_scaling_beta": 0.1},
        "num_key_value_heads": 4,
    },
    "nemotron-nas": {
        "block_configs": [
            {"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 1.5}},
            {"attention": {"no_op": True}, "ffn": {"ffn_mult": 1.5}},
            {"attention": {"n_heads_in_group": 2}, "ffn": {"no_op": True}},
        ]
    },
    "openelm": {
        "num_transformer_layers": 3,
        "model_dim": 64,
        "ffn_dim_divisor": 8,
        "num_query_heads": [4, 4, 4],
        "num_kv_heads": [2, 2, 2],
        "ffn_multipliers": [1.5, 1.5, 1.5],
    },
    "phixtral": {"num_vocab": VOCABULARY, "model_dim": 64, "num_heads": 4, "num_layers": 3, "rotary_dim": 8},
    "plamo": {"n_shared_head": 2},
    "qwen": {"kv_channels": 16},
    "qwen3_vl_moe": {**EXPERTS, "decoder_sparse_step": 1, "mlp_only_layers": []},
    "stablelm": {"use_qkv_bias": False},
    "phi3small": {
        "dense_attention_every_n_layers": 2,
        "ff_intermediate_size": 96,
        "gegelu_limit": 20.0,
    },
    # models of several kinds of input, by their text alone
    "muse_spark": {
        **WINDOWED,
        "post_norm_eps": 1e-6,
        "rope_parameters": ROPE,
        "layer_rope_theta": [10_000.0, 0.0, 10_000.0, 0.0],
        "final_logit_softcapping": 30.0,
        "output_multiplier": 1.0,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "moe_hidden_size": 64,
        "moe_intermediate_size": 32,
    },
}
OWN["bailing_moe_v3"] |= {"n_group": 1, "topk_group": 1}
OWN |= {
    "gemma3": OWN["gemma3_text"],
    "gemma4": OWN["gemma4_text"],
    "lfm2-vl": {**OWN["lfm2"], "norm_eps": 1e-5, "conv_bias": False, "conv_L_cache": 3},
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, windows": ("llama", WINDOWED),
    "llama4_text, tied": ("llama4_text", {"tie_word_embeddings": True}),
    "minicpm, tied": ("minicpm", {"tie_word_embeddings": True}),
    "seed_oss, tied": ("seed_oss", {"tie_word_embeddings": True}),
    "gemma4_text, experts": (
        "gemma4_text",
        {
            **FOUR,
            "num_kv_shared_layers": 0,
            "global_head_dim": 32,
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 262_144,
            "layer_types": None,
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 32,
        },
    ),
}


@dataclass(frozen=True)
class Specimen:
    """One configuration that can be built.

    Attributes:
        name: the module's, or that of a variant of it.
        module: of mlx-lm.
        config: as a `config.json` would have it.
    """

    name: str
    module: ModuleType
    config: dict[str, Any]


class CannotBuild(Exception):
    """No tiny model of a module can be made; the message is the reason."""


def names() -> list[str]:
    """Every module of mlx-lm that defines a text model, and the variants, sorted."""
    found = []
    for info in pkgutil.iter_modules(mlx_lm.models.__path__):
        try:
            module = importlib.import_module(f"mlx_lm.models.{info.name}")
        except (Exception, SystemExit):  # noqa: BLE001 - one needs a package and exits; it is in the table all the same
            found.append(info.name)
            continue
        if hasattr(module, "Model") and hasattr(module, "ModelArgs"):
            found.append(info.name)
    return sorted([*found, *VARIANTS])


def specimen(name: str) -> Specimen:
    """The tiny configuration of that name. Raises CannotBuild: its module cannot be imported."""
    module_name, more = VARIANTS.get(name, (name, {}))
    try:
        module = importlib.import_module(f"mlx_lm.models.{module_name}")
    except (Exception, SystemExit) as error:  # noqa: BLE001 - as above
        said = "it needs a package that is not installed" if isinstance(error, SystemExit) else str(error)
        raise CannotBuild(f"it cannot be imported: {said}") from None
    fields = {field.name: field for field in dataclasses.fields(module.ModelArgs)}
    needed = [
        n for n, f in fields.items() if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    config = {**BASE, **{n: TINY[n] for n in needed if n in TINY}, **OWN.get(module_name, {}), **more}
    config["model_type"] = module_name
    if "text_config" in fields:
        config = {"model_type": module_name, "text_config": config, "vocab_size": VOCABULARY}
    return Specimen(name, module, config)


def build(name: str, seed: int = 0) -> nn.Module:
    """A random model, frozen and in evaluation mode. Raises CannotBuild."""
    found = specimen(name)
    mx.random.seed(seed)
    try:
        model: nn.Module = found.module.Model(found.module.ModelArgs.from_dict(found.config))
        if not hasattr(model, "_no_grad"):  # one of them forgets to initialise what it derives from
            vars(model).update(_no_grad=set(), _training=True)
        model.update(tree_map_with_path(_livelier, model.parameters()))
        model.eval()
        model.freeze()
        mx.eval(model.parameters())
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, NotImplementedError) as error:
        raise CannotBuild(f"{type(error).__name__}: {' '.join(str(error).split())}") from None
    return model


def noisy(name: str, seed: int, noise: float, noise_seed: int = 1) -> nn.Module:
    """The same model with noise on each matrix, of so many of its standard deviations: a draft that agrees often."""
    model = build(name, seed)
    mx.random.seed(1000 + noise_seed)

    def disturbed(_path: str, values: mx.array) -> mx.array:
        if values.ndim < 2 or not mx.issubdtype(values.dtype, mx.floating):
            return values
        return values + noise * mx.std(values) * mx.random.normal(values.shape)

    model.update(tree_map_with_path(disturbed, model.parameters()))
    mx.eval(model.parameters())
    return model


def _livelier(path: str, values: mx.array) -> mx.array:
    """Weights larger than a fresh model's, so that its layers mix, no two logits tie, and nothing is zero that acts."""
    leaf = path.rpartition(".")[2]
    if not mx.issubdtype(values.dtype, mx.floating):
        return values
    is_zero = bool(mx.all(values == 0).item())
    if "lm_head" in path and not is_zero:
        return 3.0 * values
    if "embed" in path and leaf == "weight":
        return values
    if values.ndim >= 2 and leaf == "weight" and "norm" not in path:
        return 2.5 * (0.05 * mx.random.normal(values.shape) if is_zero else values)
    return 0.3 * mx.random.normal(values.shape) if is_zero and values.size > 1 else values
