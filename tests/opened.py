"""Tiny published checkpoints with the values of their original implementations.

``tests/golden/checkpoints`` has a few; with the environment variable ``DSFJAX_CHECKPOINTS`` the
slow tests read another folder of such folders.
"""

import json
import os
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

import dsfjax
from dsfjax import Opened

HERE = Path(__file__).parent / "golden" / "checkpoints"
FOLDER = Path(os.environ.get("DSFJAX_CHECKPOINTS", HERE))
FAMILIES = sorted(path.parent.name for path in FOLDER.glob("*/config.json"))
WORDS = "the cat sat on the mat and the dog sat on the $log$ again and again".split()
QUICK = ("mamba",)


@lru_cache(maxsize=4)
def opened(name: str) -> Opened:
    """A checkpoint in float64."""
    return dsfjax.open(FOLDER / name, dtype="float64")


def reference(name: str, file: str = "reference") -> dict[str, np.ndarray]:
    """The values of its original."""
    with np.load(FOLDER / name / f"{file}.npz") as found:
        return dict(found)


def distance(found: Array, expected: Array | np.ndarray) -> float:
    """‖found − expected‖ / ‖expected‖."""
    return float(jnp.linalg.norm(found - expected) / np.linalg.norm(np.asarray(expected)))


def with_tokenizer(folder: Path) -> Path:
    """A copy of a checkpoint with a tokenizer of a few words."""
    shutil.copytree(HERE / "mamba", folder)
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(["?", *WORDS]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def written(folder: Path, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> Path:
    """A checkpoint of random tensors."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(0, 0.5, shape) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def mamba2(folder: Path) -> Path:
    """Mamba-2 with one layer: two groups of two heads, four states."""
    config = {
        **{"model_type": "mamba2", "vocab_size": 9, "hidden_size": 4, "num_hidden_layers": 1},
        **{"num_heads": 4, "head_dim": 2, "n_groups": 2, "state_size": 4, "conv_kernel": 3},
        **{"use_bias": True},
    }
    mixer = {
        **{"A_log": (4,), "D": (4,), "dt_bias": (4,), "norm.weight": (8,)},
        **{"conv1d.weight": (24, 1, 3), "conv1d.bias": (24,)},
        **{"in_proj.weight": (36, 4), "in_proj.bias": (36,)},
        **{"out_proj.weight": (4, 8), "out_proj.bias": (4,)},
    }
    layer = {"norm.weight": (4,), **{f"mixer.{name}": x for name, x in mixer.items()}}
    shapes: dict[str, tuple[int, ...]] = {"norm_f.weight": (4,), "embeddings.weight": (9, 4)}
    shapes |= {f"layers.0.{name}": x for name, x in layer.items()}
    shapes = {f"backbone.{name}": x for name, x in shapes.items()}
    return written(folder, config, {**shapes, "lm_head.weight": (9, 4)})


def xlstm(folder: Path) -> Path:
    """xLSTM with one layer of joint maps: two heads with keys of three channels."""
    config = {
        **{"model_type": "xlstm", "vocab_size": 9, "hidden_size": 12, "num_hidden_layers": 1},
        **{"num_heads": 2, "qk_dim_factor": 0.5, "v_dim_factor": 1.0, "weight_mode": "fused"},
        **{"ffn_proj_factor": 1.0, "ffn_round_up_to_multiple_of": 4, "use_bias": True},
    }
    mixer = {"qkv_opreact": 36, "ifgate_preact": 4, "out_proj": 12}
    inner = {"proj_up_gate_z": 24, "proj_down": 12}
    maps = {f"mlstm_layer.{name}": out for name, out in mixer.items()}
    maps |= {f"ffn.{name}": out for name, out in inner.items()}
    norms = {f"{name}.weight": (12,) for name in ("norm_ffn", "norm_mlstm")}
    norms |= {f"{name}.bias": (12,) for name in ("norm_ffn", "norm_mlstm")}
    norms |= {f"mlstm_layer.multihead_norm.{kind}": (12,) for kind in ("weight", "bias")}
    layer = {f"{name}.weight": (out, 12) for name, out in maps.items()}
    layer |= {f"{name}.bias": (out,) for name, out in maps.items()} | norms
    shapes = {f"backbone.blocks.0.{name}": x for name, x in layer.items()}
    shapes |= {"backbone.embeddings.weight": (9, 12), "lm_head.weight": (9, 12)}
    return written(folder, config, shapes | {"backbone.out_norm.weight": (12,)})


def gla(folder: Path, **own: Any) -> Path:
    """GLA with two layers: two heads with keys of three channels, by default with convolutions."""
    config = {
        **{"model_type": "gla", "vocab_size": 9, "hidden_size": 12, "num_hidden_layers": 2},
        **{"num_heads": 2, "expand_k": 0.5, "expand_v": 1.0, "use_short_conv": True},
        **{"conv_size": 2, "intermediate_size": 8, **own},
    }
    keys, values = (round(12 * config[f"expand_{x}"]) for x in "kv")
    share = config.get("num_kv_heads", config["num_heads"]) / config["num_heads"]
    written_keys, written_values = round(keys * share), round(values * share)
    maps = {"q_proj": keys, "k_proj": written_keys, "v_proj": written_values, "g_proj": values}
    maps |= {"o_proj": 12, "gk_proj.0": 16}
    layer: dict[str, tuple[int, ...]] = {
        f"attn.{name}.weight": (out, values if name == "o_proj" else 12)
        for name, out in maps.items()
    }
    if config["use_short_conv"]:
        layer |= {f"attn.{x}_conv1d.weight": (maps[f"{x}_proj"], 1, 2) for x in "qkv"}
    layer |= {"attn.gk_proj.1.weight": (written_keys, 16), "attn.gk_proj.1.bias": (written_keys,)}
    layer |= {"attn.g_norm_swish_gate.weight": (6,), "mlp.down_proj.weight": (12, 8)}
    layer |= {f"mlp.{name}_proj.weight": (8, 12) for name in ("gate", "up")}
    layer |= {f"{name}_norm.weight": (12,) for name in ("attn", "mlp")}
    shapes = {f"model.layers.{i}.{name}": x for i in range(2) for name, x in layer.items()}
    shapes |= {"model.embeddings.weight": (9, 12), "lm_head.weight": (9, 12)}
    return written(folder, config, shapes | {"model.norm.weight": (12,)})


def s6(folder: Path, model_type: str, **own: Any) -> Path:
    """Falcon-Mamba or Jamba, two layers: eight channels of four states, normed B and C, ε of 1e-20.

    The maps to B and C are rows 3 to 6 and 7 to 10 of x_proj.
    """
    jamba = model_type == "jamba"
    sizes = {"vocab_size": 9, "hidden_size": 4, "num_hidden_layers": 2, "intermediate_size": 8}
    config: dict[str, Any] = {"model_type": model_type, **sizes}
    if jamba:
        config |= {"mamba_d_state": 4, "mamba_dt_rank": 3, "rms_norm_eps": 1e-20}
        config |= {"num_attention_heads": 2, "attn_layer_period": 8, "attn_layer_offset": 7}
        config |= {"num_experts": 1, "num_experts_per_tok": 1}
    else:
        config |= {"state_size": 4, "time_step_rank": 3, "conv_kernel": 4, "mixer_rms_eps": 1e-20}
    mixer = {"A_log": (8, 4), "D": (8,), "conv1d.weight": (8, 1, 4), "conv1d.bias": (8,)}
    mixer |= {"in_proj.weight": (16, 4), "x_proj.weight": (11, 8), "dt_proj.weight": (8, 3)}
    mixer |= {"dt_proj.bias": (8,), "out_proj.weight": (4, 8)}
    if jamba:
        norms = {"dt": 3, "b": 4, "c": 4}
        mixer |= {f"{name}_layernorm.weight": (size,) for name, size in norms.items()}
    place = "mamba" if jamba else "mixer"
    layer: dict[str, tuple[int, ...]] = {f"{place}.{name}": x for name, x in mixer.items()}
    if jamba:
        layer |= {"input_layernorm.weight": (4,), "pre_ff_layernorm.weight": (4,)}
        layer |= {f"feed_forward.{name}_proj.weight": (8, 4) for name in ("gate", "up")}
        layer |= {"feed_forward.down_proj.weight": (4, 8)}
    else:
        layer |= {"norm.weight": (4,)}
    above = "model.layers" if jamba else "backbone.layers"
    shapes = {f"{above}.{i}.{name}": x for i in range(2) for name, x in layer.items()}
    ends = ("model.embed_tokens", "model.final_layernorm")
    ends = ends if jamba else ("backbone.embeddings", "backbone.norm_f")
    shapes |= {f"{ends[0]}.weight": (9, 4), f"{ends[1]}.weight": (4,), "lm_head.weight": (9, 4)}
    return written(folder, {**config, **own}, shapes)


def fla(folder: Path, model_type: str, maps: dict[str, tuple[int, ...]], **own: Any) -> Path:
    """One layer of width 12 of a family of flash-linear-attention, with these tensors."""
    config = {
        **{"model_type": model_type, "vocab_size": 9, "hidden_size": 12, "num_hidden_layers": 1},
        **{"intermediate_size": 8, **own},
    }
    layer = {f"attn.{name}.weight": shape for name, shape in maps.items()}
    layer |= {"mlp.down_proj.weight": (12, 8)}
    layer |= {f"mlp.{name}_proj.weight": (8, 12) for name in ("gate", "up")}
    layer |= {f"{name}_norm.weight": (12,) for name in ("attn", "mlp")}
    shapes = {f"model.layers.0.{name}": x for name, x in layer.items()}
    shapes |= {"model.embeddings.weight": (9, 12), "lm_head.weight": (9, 12)}
    return written(folder, config, shapes | {"model.norm.weight": (12,)})


def retnet(folder: Path, **own: Any) -> Path:
    """Four heads of queries, two of keys with four channels each."""
    maps: dict[str, tuple[int, ...]] = {
        "q_proj": (16, 12),
        "k_proj": (8, 12),
        "v_proj": (12, 12),
        "g_proj": (24, 12),
    }
    maps |= {"o_proj": (12, 24), "g_norm_swish_gate": (6,)}
    sizes = {"num_heads": 4, "num_kv_heads": 2, "expand_k": 4 / 3, "expand_v": 2.0}
    return fla(folder, "retnet", maps, **sizes, **own)


def hgrn2(folder: Path, **own: Any) -> Path:
    """Three heads of four channels, with bounded forget gates."""
    maps: dict[str, tuple[int, ...]] = {f"{name}_proj": (12, 12) for name in "qfio"}
    maps |= {"g_norm": (12,)}
    return fla(folder, "hgrn2", maps, expand_ratio=4, use_lower_bound=False, **own)


def minimax(folder: Path, **own: Any) -> Path:
    """One layer of lightning attention: two heads of three channels, one expert."""
    config = {
        **{"model_type": "minimax", "vocab_size": 9, "hidden_size": 4, "num_hidden_layers": 1},
        **{"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 3},
        **{"num_local_experts": 1, "num_experts_per_tok": 1, "intermediate_size": 5},
        **{"layer_types": ["linear_attention"], "tie_word_embeddings": False, **own},
    }
    layer: dict[str, tuple[int, ...]] = {
        f"self_attn.{name}.weight": shape
        for name, shape in (
            *(("qkv_proj", (18, 4)), ("output_gate", (6, 4)), ("out_proj", (4, 6)), ("norm", (6,))),
        )
    }
    layer |= {"input_layernorm.weight": (4,), "post_attention_layernorm.weight": (4,)}
    experts = {"gate": (1, 4), "experts.0.w1": (5, 4), "experts.0.w2": (4, 5)}
    experts |= {"experts.0.w3": (5, 4)}
    layer |= {f"block_sparse_moe.{name}.weight": x for name, x in experts.items()}
    shapes = {f"model.layers.0.{name}": x for name, x in layer.items()}
    shapes |= {"model.embed_tokens.weight": (9, 4), "lm_head.weight": (9, 4)}
    return written(folder, config, shapes | {"model.norm.weight": (4,)})
