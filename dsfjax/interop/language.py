"""The language model of the paper's code (arXiv:2405.15731), and its checkpoints as a `Model`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jax import Array

from dsfjax import nn
from dsfjax.interop import attention_modules, mamba, zoology_lstm
from dsfjax.interop import weights as w
from dsfjax.interop.source import Function, Recipe, Source, construct, find, only
from dsfjax.interop.weights import Shapes, Weights

MODULE = "zoology.model.LanguageModel"
_MLP = "zoology.mixers.mlp.MLP"
_IDENTITY = "torch.nn.Identity"
_IN_TRANSFORMER = attention_modules.SOURCES | zoology_lstm.SOURCES
_IN_MAMBA_BLOCK = {
    "mamba": f"{mamba.MODULE}.Mamba",
    "s6": f"{mamba.MODULE}.S6",
    "s6-2": f"{mamba.MODULE}.S6_2",
}


class LanguageModel(NamedTuple):
    """The authors' language model as a `dsfjax.nn.Model`.

    Attributes:
        config: The model as data; its surroundings are overruled by those of the original mixer.
        model: Functions of ``params``: apply, generate, systems, ….
        shapes: Of the original weights, by name. The head is tied and has no weight of its own
            (leave ``lm_head.weight`` out).
        params: ``params(weights) -> params``, checked by name and shape; differentiable.
    """

    config: nn.ModelConfig
    model: nn.Model
    shapes: Shapes
    params: Callable[[Mapping[str, Any]], dict[str, Any]]

    def function(self) -> Function:
        """Logits of one sequence of token ids."""

        def run(weights: Weights, tokens: Array) -> Array:
            return self.model.apply(self.params(weights), tokens)

        return Function(self.shapes, run)


def language_model(**kwargs: Any) -> LanguageModel:
    """The authors' language model, from the keywords of their configuration.

    Args:
        **kwargs: ``d_model``, ``d_qk``, ``n_layers``, ``vocab_size``, ``sequence_mixer``
            (``{"name": …, "kwargs": {…}}``), ``state_mixer``, ``block_type``,
            ``max_position_embeddings``, ``embed_dropout``, ``resid_dropout``, ….

    Returns:
        A `LanguageModel`.

    Raises:
        TypeError: For an unknown or missing keyword.
        ValueError: For values that are not supported.

    Example:
        >>> authors = language_model(
        ...     d_model=8, d_qk=4, vocab_size=16, n_layers=1, block_type="MambaBlock",
        ...     max_position_embeddings=0, sequence_mixer={"name": "s6", "kwargs": {}})
        >>> authors.shapes["backbone.layers.0.mixer.A_log"], authors.config.mixer
        ((8, 4), 's6')
    """
    return construct(MODULE, SOURCES[MODULE], kwargs)


def _build(
    *,
    sequence_mixer: Mapping[str, Any],
    state_mixer: Mapping[str, Any] | None = None,
    d_model: int = 128,
    d_qk: int = 16,
    n_layers: int = 2,
    max_position_embeddings: int = 64,
    learnable_word_embeddings: bool = True,
    vocab_size: int = 8192,
    pad_vocab_size_multiple: int = 1,
    resid_dropout: float = 0.0,
    embed_dropout: float = 0.1,
    drop_path: float = 0.0,
    layer_norm_epsilon: float = 1e-5,
    block_type: str = "TransformerBlock",
) -> LanguageModel:
    only(MODULE, "block_type", block_type, "TransformerBlock", "MambaBlock")
    only(MODULE, "learnable_word_embeddings", learnable_word_embeddings, True)
    only(MODULE, "drop_path", drop_path, 0.0)
    only(MODULE, "layer_norm_epsilon", layer_norm_epsilon, 1e-5)
    in_transformer = block_type == "TransformerBlock"
    recipe = _mixer(sequence_mixer, d_model, d_qk, in_transformer)
    own = dict(sequence_mixer.get("kwargs", {}))
    block, mlp_ratio = _channels(state_mixer) if in_transformer else ("mamba", 4)
    vocab_size += -vocab_size % pad_vocab_size_multiple
    options = {k: v for k, v in recipe.options.items() if k not in ("d_state", "num_heads")}
    config = nn.ModelConfig(
        recipe.name,
        vocab_size,
        d_model=d_model,
        num_layers=n_layers,
        d_state=recipe.options.get("d_state"),
        num_heads=recipe.options.get("num_heads"),
        options=tuple(options.items()),
        block=block,
        mlp_ratio=mlp_ratio,
        max_length=max(max_position_embeddings, 0),
        embed_dropout=embed_dropout,
        residual_dropout=resid_dropout,
        attention_dropout=own.get("dropout", 0.0),
        init="authors",
    )
    shapes = _shapes(config, recipe)

    def params(weights: Mapping[str, Any]) -> dict[str, Any]:
        return _params(config, recipe, w.check(MODULE, weights, shapes))

    return LanguageModel(config, nn.build(config, around=recipe.around), shapes, params)


def _mixer(given: Mapping[str, Any], d_model: int, d_qk: int, in_transformer: bool) -> Recipe:
    name, own = given["name"], dict(given.get("kwargs", {}))
    if in_transformer:
        source = find(name, _IN_TRANSFORMER)
        sizes = {"d_model": d_model, "d_qk": d_qk}
    else:
        only(MODULE, "name of the sequence_mixer of a MambaBlock", name, *_IN_MAMBA_BLOCK)
        name = _IN_MAMBA_BLOCK[name]
        source = mamba.SOURCES[name]
        sizes = {"d_model": d_model, "d_state": d_qk}
    return construct(name, source, sizes | own)


def _channels(state_mixer: Mapping[str, Any] | None) -> tuple[Any, int]:
    """Kind of block and width of its MLP."""
    if state_mixer is None:
        return "prenorm", 4
    name, own = state_mixer["name"], dict(state_mixer.get("kwargs", {}))
    only(MODULE, "name of the state_mixer", name, _IDENTITY, _MLP)
    if name == _IDENTITY:
        return "transformer", 4
    ratio = own.pop("hidden_mult", 1)
    if own:
        raise TypeError(f"{_MLP} has no supported keyword {next(iter(own))!r}; use hidden_mult.")
    return "prenorm", ratio


def _shapes(config: nn.ModelConfig, recipe: Recipe) -> Shapes:
    d = config.d_model
    embeddings = "backbone.embeddings"
    shapes: Shapes = {f"{embeddings}.word_embeddings.weight": (config.vocab_size, d)}
    if config.max_length:
        shapes |= {f"{embeddings}.position_embeddings.weight": (config.max_length, d)}
    layer = w.prefixed(_names(config)["mixer"], recipe.shapes)
    layer |= w.norm_shapes(_names(config)["norm1"], d)
    if config.block != "mamba":
        layer |= w.norm_shapes("norm2", d)
    if config.block == "prenorm":
        hidden = config.mlp_ratio * d
        layer |= w.linear_shapes("state_mixer.fc1", d, hidden)
        layer |= w.linear_shapes("state_mixer.fc2", hidden, d)
    for i in range(config.num_layers):
        shapes |= w.prefixed(f"backbone.layers.{i}", layer)
    return shapes | w.norm_shapes("backbone.ln_f", d)


def _params(config: nn.ModelConfig, recipe: Recipe, weights: Weights) -> dict[str, Any]:
    def block(i: int) -> dict[str, Any]:
        layer, names = w.under(f"backbone.layers.{i}", weights), _names(config)
        mixer = recipe.params(w.under(names["mixer"], layer))
        params: dict[str, Any] = {"mixer": mixer, "norm1": w.norm(layer, names["norm1"])}
        if config.block != "mamba":
            params["norm2"] = w.norm(layer, "norm2")
        if config.block == "prenorm":
            params["mlp"] = {fc: w.linear(layer, f"state_mixer.{fc}") for fc in ("fc1", "fc2")}
        return params

    embeddings = w.under("backbone.embeddings", weights)
    params: dict[str, Any] = {
        "embed": {"embedding": embeddings["word_embeddings.weight"]},
        "blocks": {f"block_{i}": block(i) for i in range(config.num_layers)},
        "norm_f": w.norm(weights, "backbone.ln_f"),
    }
    if config.max_length:
        params["positions"] = {"embedding": embeddings["position_embeddings.weight"]}
    return params


def _names(config: nn.ModelConfig) -> dict[str, str]:
    if config.block == "mamba":
        return {"mixer": "mixer", "norm1": "norm"}
    return {"mixer": "sequence_mixer", "norm1": "norm1"}


SOURCES = {MODULE: Source(_build, ("name",))}
