"""The authors' PyTorch models and their training step on a CPU, from a clone of their repository.

Their code imports CUDA extensions when it is imported. Here stand functions of the same meaning in
plain PyTorch: their own reference of the selective scan, layer norm after an addition, and a loop
for the RNN's scan. Nothing of theirs is part of this project.
"""

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any

from dsfjax.bench.peers.importing import load
from dsfjax.training import TrainConfig

MIXERS: dict[str, dict[str, Any]] = {
    "softmax_attention": {"name": "zoology.mixers.attention.MHA", "kwargs": {"lin_att": False}},
    "linear_attention": {"name": "zoology.mixers.attention.MHA", "kwargs": {"lin_att": True}},
    "normalized_attention": {"name": "zoology.mixers.attention.MHNA"},
    "s6": {"name": "s6"},
    "ssd": {"name": "s6-2"},
    "qlstm": {"name": "zoology.mixers.lstm.qLSTM", "kwargs": {"reversed": False}},
    "qlstm_reversed": {"name": "zoology.mixers.lstm.qLSTM", "kwargs": {"reversed": True}},
}
"""Our names to their configs."""


def training_step(
    repository: Path, mixer: str, config: TrainConfig, inputs: Any, labels: Any
) -> Callable[[], float]:
    """Build their model and optimiser.

    Args:
        repository: A clone of IntelligentControlSystems/dsf-mqar.
        mixer: One of ``MIXERS``.
        config: Of our run: sizes and learning rate are taken from it.
        inputs: Tokens (batch, L).
        labels: (batch, L), −100 where there is no question.

    Returns:
        A function that takes a training step on these examples and returns the loss.
    """
    recurrent = mixer in ("s6", "ssd")
    own = {} if mixer == "normalized_attention" else {"state_mixer": {"name": "torch.nn.Identity"}}
    model = language_model(
        repository,
        d_model=config.architecture.d_model,
        d_qk=config.architecture.d_state or 10,
        n_layers=config.architecture.num_layers,
        block_type="MambaBlock" if recurrent else "TransformerBlock",
        max_position_embeddings=0 if recurrent else config.task.seq_len,
        vocab_size=config.model.vocab_size,
        sequence_mixer=MIXERS[mixer],
        **own,
    )
    step = stepping(model, 1e-3)
    return lambda: step(inputs, labels)


def language_model(repository: Path, **keywords: Any) -> Any:
    """Their language model, with their initial weights.

    Args:
        repository: A clone of IntelligentControlSystems/dsf-mqar.
        **keywords: Of their ``ModelConfig``, as `dsfjax.interop.language_model` takes them.

    Returns:
        The PyTorch module.
    """
    _replace_cuda(repository)
    from zoology.config import ModelConfig  # type: ignore[import-not-found]
    from zoology.model import LanguageModel  # type: ignore[import-not-found]

    model = LanguageModel(ModelConfig(**keywords))
    for module in model.modules():
        if type(module).__name__ == "TokenEmbeddings":
            module.device = "cpu"
    return model


def stepping(model: Any, learning_rate: float) -> Callable[[Any, Any], float]:
    """Their training step: AdamW with a weight decay of 0.1 on everything.

    Args:
        model: What `language_model` gives; it is changed in place.
        learning_rate: The rate of every step.

    Returns:
        A function of tokens (batch, L) and labels (batch, L), −100 where there is no question, both
        int64, that takes a step and returns the loss before it.
    """
    torch = load("torch")
    adamw = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.1)
    loss_of = torch.nn.CrossEntropyLoss(ignore_index=-100)

    def step(tokens: Any, labels: Any) -> float:
        adamw.zero_grad()
        outputs = model(torch.as_tensor(tokens)).flatten(0, 1)
        loss = loss_of(outputs, torch.as_tensor(labels).flatten())
        loss.backward()
        adamw.step()
        return loss.item()

    return step


def compute_in_float64() -> None:
    """Have PyTorch compute in float64 in this process, their explicit casts to float32 included."""
    torch = load("torch")
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double


def _replace_cuda(repository: Path) -> None:
    """Put functions in plain PyTorch where their modules look for CUDA."""
    torch, functional = load("torch"), load("torch.nn.functional")

    def norm(x: Any, weight: Any, bias: Any, *, residual: Any, eps: float, **_: Any) -> Any:
        residual = x if residual is None else x + residual
        return functional.layer_norm(residual, weight.shape, weight, bias, eps), residual

    def scan(gates: Any, tokens: Any) -> Any:
        h, states = torch.zeros_like(tokens[..., 0]), []
        for a, x in zip(gates.unbind(-1), tokens.unbind(-1), strict=True):
            h = a * h + x
            states.append(h)
        return torch.stack(states, dim=-1)

    class StochasticDepth(torch.nn.Identity):
        """Their rate is 0."""

    replacements: dict[str, dict[str, Any]] = {
        "causal_conv1d": {"causal_conv1d_fn": None},
        "selective_scan_cuda": {},
        "torchvision": {},
        "torchvision.ops": {"StochasticDepth": StochasticDepth},
        "accelerated_scan": {},
        "accelerated_scan.warp": {"scan": scan},
        "zoology.mixers.mamba_ssm.triton.layernorm": {
            "RMSNorm": type("RMSNorm", (torch.nn.Module,), {}),
            "layer_norm_fn": norm,
            "rms_norm_fn": None,
        },
        "wandb": {},
        "pandas": {"DataFrame": object},
    }
    for name, contents in replacements.items():
        if name not in sys.modules:
            module = module_from_spec(ModuleSpec(name, None))
            vars(module).update(contents)
            sys.modules[name] = module
    if str(repository) not in sys.path:
        sys.path.insert(0, str(repository))
    from zoology.mixers import mamba  # type: ignore[import-not-found]
    from zoology.mixers.mamba_ssm import (  # type: ignore[import-not-found]
        selective_scan_interface as interface,
    )

    mamba.selective_scan_fn = interface.selective_scan_ref
