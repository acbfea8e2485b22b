"""Checkpoints of RWKV-7 as its authors write them (arXiv:2503.14456): a ``.pth`` without a config.

Maps of low rank are x W there, with W (in, out), and vectors have two axes of size 1 in front. The
first layer may have a share of earlier values, which nothing reads.
"""

from __future__ import annotations

import re

from dsfjax.interop.published.tensor_files import Config, Converted, Tensors

_LORA = {"0": "2.bias", "1": "0.weight", "2": "2.weight"}
_NAMES = {
    "emb": "model.embeddings",
    "ln_out": "model.norm",
    "head": "lm_head",
    "ln0": "pre_norm",
    "ln1": "attn_norm",
    "ln2": "ffn_norm",
    "att": "attn",
    "receptance": "r_proj",
    "key": "k_proj",
    "value": "v_proj",
    "output": "o_proj",
    "ln_x": "g_norm",
}
_CHANNELS = 64
_RANKS = {"decay_low_rank_dim": "w", "a_low_rank_dim": "a", "gate_low_rank_dim": "g"}


def from_rwkv7(config: Config, tensors: Tensors) -> Converted:
    """Settings and tensors by the names of flash-linear-attention.

    Args:
        config: Without settings: the shapes say the sizes.
        tensors: By the names of the authors.

    Returns:
        The settings, and the tensors under their new names.

    Raises:
        ValueError: If a tensor is missing that a size is read from, or heads have not 64 channels.
    """

    def shape(name: str) -> tuple[int, int]:
        found = tensors.get(name)
        if found is None or found.ndim != 2:
            got = "none" if found is None else f"one of shape {list(found.shape)}"
            raise ValueError(f"{config.where}: {name}: expected a matrix, got {got}.")
        return found.shape

    vocab, d = shape("emb.weight")
    heads, channels = shape("blocks.0.att.r_k")
    if channels != _CHANNELS:
        raise ValueError(
            f"{config.where}: blocks.0.att.r_k: expected heads of {_CHANNELS} channels, for "
            f"which ε of their norm is fixed, got {channels}."
        )
    numbers = {name.split(".")[1] for name in tensors if name.startswith("blocks.")}
    ranks = {name: shape(f"blocks.0.att.{letter}1")[1] for name, letter in _RANKS.items()}
    if len(numbers) > 1:
        ranks["v_low_rank_dim"] = shape("blocks.1.att.v1")[1]
    found = {
        "model_type": "rwkv7",
        "vocab_size": vocab,
        "hidden_size": d,
        "num_hidden_layers": len(numbers),
        "head_dim": channels,
        "num_heads": heads,
        "intermediate_size": shape("blocks.0.ffn.key.weight")[0],
        **ranks,
        "norm_eps": 1e-5,  # 64 channels times this are the ε of the norm of heads
        "norm_first": True,
        "norm_bias": True,
        "fuse_norm": False,  # keys are divided by their norm, which is clipped at 1e-12
        "hidden_act": "sqrelu",
        "tie_word_embeddings": False,
    }
    named = {}
    for name, tensor in tensors.items():
        if re.fullmatch(r"blocks\.0\.att\.v[012]", name):
            continue  # the first layer makes the values that the others share
        own, is_factor = _renamed(name)
        if is_factor:
            tensor = tensor.T
        elif tensor.ndim == 3 and tensor.shape[:2] == (1, 1) and ".attn.x_" not in own:
            tensor = tensor[0, 0]
        named[own] = tensor
    return found, named


def _renamed(name: str) -> tuple[str, bool]:
    """The name in the published format, and whether it is a factor of a map of low rank."""
    of_block = re.fullmatch(r"blocks\.(\d+)\.(\w+)\.(.+)", name)
    if of_block is None:
        return _first_renamed(name), False
    number, part, inner = of_block.groups()
    low_rank = re.fullmatch("([wavg])([012])", inner) if part == "att" else None
    if low_rank is not None:
        inner = f"{low_rank[1]}_lora.lora.{_LORA[low_rank[2]]}"
    elif part == "att":
        inner = _first_renamed(inner)
    is_factor = low_rank is not None and low_rank[2] != "0"
    return f"model.layers.{number}.{_NAMES.get(part, part)}.{inner}", is_factor


def _first_renamed(name: str) -> str:
    first, dot, rest = name.partition(".")
    return _NAMES.get(first, first) + dot + rest
