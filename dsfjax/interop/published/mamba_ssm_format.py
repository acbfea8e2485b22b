"""Checkpoints of Mamba and Mamba-2 as mamba_ssm writes them (arXiv:2312.00752, 2405.21060).

``state-spaces/mamba-130m`` and its like: the tensors have the names and layouts of the published
format but for the embeddings, and config.json has the arguments of the classes of mamba_ssm.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dsfjax.interop.published.tensor_files import Config, Converted, Tensors


def from_mamba_ssm(config: Config, tensors: Tensors) -> Converted:
    """Settings and tensors by the names of ``transformers``.

    Args:
        config: With d_model, n_layer, vocab_size, ssm_cfg and so on.
        tensors: By the names of mamba_ssm.

    Returns:
        The settings, and the tensors under their new names.

    Raises:
        ValueError: For a setting without an equivalent, such as layers of attention.
    """
    d, ssm = config.size("d_model"), config.section("ssm_cfg")
    config.only("rms_norm", True)
    config.only("d_intermediate", 0)
    config.only("attn_layer_idx", [])
    config.only("attn_cfg", {})
    config.ignore("fused_add_norm")
    second = ssm.word("layer", ("Mamba1", "Mamba2"), "Mamba1") == "Mamba2"
    vocab, multiple = config.size("vocab_size"), config.size("pad_vocab_size_multiple", 8)
    tied, expand = config.flag("tie_embeddings", True), ssm.size("expand", 2)
    found: dict[str, Any] = {
        "model_type": "mamba2" if second else "mamba",
        "vocab_size": -(-vocab // multiple) * multiple,
        "hidden_size": d,
        "num_hidden_layers": config.count("n_layer"),
        "layer_norm_epsilon": 1e-5,
        "residual_in_fp32": config.flag("residual_in_fp32", True),
        "tie_word_embeddings": tied,
        "expand": expand,
        "state_size": ssm.size("d_state", 128 if second else 16),
        "conv_kernel": ssm.size("d_conv", 4),
        "use_bias": ssm.flag("bias", False),
        "use_conv_bias": ssm.flag("conv_bias", True),
        "hidden_act": "silu",
    }
    if second:
        for name, value in (("rmsnorm", True), ("norm_before_gate", False), ("D_has_hdim", False)):
            ssm.only(name, value)
        ssm.follows("d_ssm", expand * d, "expand", "d_model")
        ssm.ignore("A_init_range")
        head_dim = ssm.divisor("headdim", "expand and d_model", expand * d, 64)
        found["head_dim"], found["num_heads"] = head_dim, expand * d // head_dim
        found["n_groups"] = ssm.divisor("ngroups", "headdim", found["num_heads"], 1)
        found["chunk_size"] = ssm.size("chunk_size", 256)
        if ssm.given("dt_limit"):
            found["time_step_limit"] = list(ssm.interval("dt_limit", (0.0, 0.0)))
    else:
        automatic = ssm.get("dt_rank", "auto") == "auto"
        found["time_step_rank"] = -(-d // 16) if automatic else ssm.size("dt_rank")
        found["intermediate_size"] = expand * d
        ssm.ignore("dt_init", "dt_scale")
    ssm.ignore("dt_min", "dt_max", "dt_init_floor", "use_fast_path", "use_mem_eff_path")
    ssm.check_all_read()
    config.check_all_read()
    own, theirs = "backbone.embeddings.weight", "backbone.embedding.weight"
    named = {own if name == theirs else name: tensor for name, tensor in tensors.items()}
    if tied and own in named and np.array_equal(named.get("lm_head.weight", ()), named[own]):
        del named["lm_head.weight"]
    return found, named
