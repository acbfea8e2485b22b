"""transformers: its Mamba and Mamba-2 mixers in PyTorch, as they run without GPU kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dsfjax.bench.peers.importing import load

Function = Callable[[Mapping[str, Any]], Any]


def mamba() -> Function:
    """`MambaMixer` with the weights of the signals."""
    config = _transformers().MambaConfig
    mixer = load("transformers.models.mamba.modeling_mamba")

    def make(s: Mapping[str, Any]) -> Any:
        width, d_state = s["A_log"].shape
        d_model = s["x"].shape[-1]
        return mixer.MambaMixer(
            config(
                hidden_size=d_model,
                state_size=d_state,
                expand=width // d_model,
                time_step_rank=s["dt_proj.weight"].shape[1],
                num_hidden_layers=1,
            ),
            layer_idx=0,
        )

    return _functional(make)


def mamba2() -> Function:
    """`Mamba2Mixer` with the weights of the signals."""
    config = _transformers().Mamba2Config
    mixer = load("transformers.models.mamba2.modeling_mamba2")

    def make(s: Mapping[str, Any]) -> Any:
        heads, width, d_model = len(s["A_log"]), len(s["norm.weight"]), s["x"].shape[-1]
        return mixer.Mamba2Mixer(
            config(
                hidden_size=d_model,
                state_size=(s["conv1d.weight"].shape[0] - width) // 2,
                expand=width // d_model,
                num_heads=heads,
                head_dim=width // heads,
                n_groups=1,
                num_hidden_layers=1,
            ),
            layer_idx=0,
        )

    return _functional(make)


def _transformers() -> Any:
    """The package, without its remark that GPU kernels are faster."""
    package = load("transformers")
    package.logging.set_verbosity_error()
    return package


def _functional(make: Callable[[Mapping[str, Any]], Any]) -> Function:
    """A module as a function of its input ``x`` and its weights by name."""
    torch, modules = load("torch"), []

    def function(s: Mapping[str, Any]) -> Any:
        if not modules:
            modules.append(make(s))
        weights = {name: value for name, value in s.items() if name != "x"}
        return torch.func.functional_call(modules[0], weights, (s["x"],), strict=True)

    return function
