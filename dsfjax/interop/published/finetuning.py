"""A published checkpoint as the model of a training run: `Checkpoint` in place of a `ModelConfig`.

The run is like any other (`dsfjax.training.train`): its batches, schedule, metrics, checkpoints and
resumption. `dsfjax.open` opens what it has trained, and `Opened.save` writes that in the format of
the checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dsfjax import nn
from dsfjax._util.fields import convert_fields
from dsfjax.interop.published.layerwise import Params, through
from dsfjax.interop.published.naming import Layer, Stream
from dsfjax.interop.published.opening import Inspected, inspect
from dsfjax.interop.published.running import Used
from dsfjax.nn import buildable
from dsfjax.nn.pieces import param_dtype

# What sets decays and steps of a state, by the ends of its names in the files.
_DYNAMICS = ("A_log", ".D", "dt_bias", "dt_proj.bias", "time_decay", "time_first", "gate_preact")


@buildable.register
@dataclasses.dataclass(frozen=True)
class Checkpoint(nn.Buildable):
    """A published checkpoint, trained further.

    Attributes:
        path: Its folder. A run reads the first parameters there, and always the config.
        vocab_size: Token ids of the task; those of the checkpoint may be more.
        layers: Numbers of the layers that are trained, everything else being frozen; all
            parameters, embeddings and head among them, if there are none.
        mixer: What it is called in tables; the name of the folder by default.

    Example:
        >>> from dsfjax.nn import build
        >>> model = build(Checkpoint("tests/golden/checkpoints/mamba", vocab_size=64, layers=(1,)))
        >>> labels = model.labels(jax.eval_shape(model.init, jax.random.key(0)))
        >>> [labels[f"backbone.layers.{i}.mixer.A_log"] for i in (0, 1)]
        ['frozen', 'dynamics']
    """

    path: str
    vocab_size: int
    layers: tuple[int, ...] = ()
    mixer: str = ""

    def __post_init__(self) -> None:
        convert_fields(self)
        object.__setattr__(self, "mixer", self.mixer or Path(self.path).name)

    def build(self) -> nn.Model:
        """The checkpoint as a `dsfjax.nn.Model`; its parameters are by the names of the file.

        Raises:
            FileNotFoundError: As of `dsfjax.open`.
            ValueError: As of `dsfjax.open`; if it has fewer tokens than the task, or not these
                layers.
        """
        found = inspect(self.path)
        count, vocab = len(found.definition.layers), found.definition.vocab_size
        if self.vocab_size > vocab:
            raise ValueError(
                f"{self.path}: expected a task with at most the {vocab} tokens of the checkpoint, "
                f"got {self.vocab_size}"
            )
        if wrong := [i for i in self.layers if not 0 <= i < count]:
            raise ValueError(f"{self.path}: expected layers from 0 to {count - 1}, got {wrong}")
        return _Pure(found, self.layers).model()


class _Pure:
    """The functions of a `dsfjax.nn.Model`, for an inspected checkpoint."""

    def __init__(self, found: Inspected, trained: tuple[int, ...]) -> None:
        model = found.definition
        self.definition, self.folder, self.dtype = model, found.folder, param_dtype()
        self.shapes = {
            name: jax.ShapeDtypeStruct(found.folder.shapes[name], self.dtype)
            for name in sorted(found.names)
        }
        self.counts = [len(used) for used in found.systems]
        own = (name for i in trained for name in model.layers[i].tensors(self.shapes).values())
        self.trained = set(own) if trained else set(self.shapes)

    def model(self) -> nn.Model:
        """The model."""
        return nn.Model(
            self.init,
            self.features,
            self.head,
            self.apply,
            self.labels,
            self.systems,
            **{name: _not_here(name) for name in ("init_state", "prefill", "step", "generate")},
        )

    def init(self, key: Array) -> Params:
        """The parameters of the file, whatever the key."""
        del key

        def read() -> dict[str, np.ndarray]:
            return {name: self.folder.read(name).astype(self.dtype) for name in self.shapes}

        # A callback, so that they are no constants of the program that starts a run.
        return jax.pure_callback(read, self.shapes)

    def features(
        self,
        params: Params,
        tokens: Array,
        *,
        reset: Array | None = None,
        length: Array | int | None = None,
        key: Array | None = None,
        dropout: Array | float | None = None,
        added: Sequence[Array] | None = None,
        state: Any = None,
    ) -> Array:
        """What leaves the last layer. There is no dropout, and padding comes after all else.

        Raises:
            ValueError: For a state, which published layers keep in another form.
        """
        del length, key, dropout
        if state is not None:
            _not_here("features(state=…)")()
        return self._run(params, tokens, reset, added)[0]["x"]

    def head(self, params: Params, features: Array, **padding: Any) -> Array:
        """Logits (…, vocab) of features (…, d)."""
        del padding
        flat = features.reshape(-1, features.shape[-1])
        positions = jnp.arange(len(flat))
        stream = self._layer(self.definition.head, params, {"x": flat}, positions)[0]
        return stream["logits"].reshape(*features.shape[:-1], -1)

    def apply(self, params: Params, tokens: Array, **keywords: Any) -> Array:
        """Logits of tokens (L,)."""
        return self.head(params, self.features(params, tokens, **keywords))

    def labels(self, params: dict[str, Any]) -> dict[str, Any]:
        """How the optimiser treats a parameter: "decay", "no_decay", "dynamics" or "frozen"."""

        def label(path: tuple[Any, ...], x: Array) -> str:
            name = path[0].key
            if name not in self.trained:
                return "frozen"
            if any(end in name for end in _DYNAMICS):
                return "dynamics"
            return "decay" if x.ndim > 1 else "no_decay"

        return jax.tree_util.tree_map_with_path(label, params)

    def systems(
        self,
        params: Params,
        tokens: Array,
        *,
        reset: Array | None = None,
        length: Array | int | None = None,
    ) -> tuple[Used, ...]:
        """Every System of every layer, and what it runs on."""
        del length
        return self._run(params, tokens, reset, None, show=True)[1]

    def _run(
        self,
        params: Params,
        tokens: Array,
        reset: Array | None,
        added: Sequence[Array] | None,
        *,
        show: bool = False,
    ) -> tuple[Stream, tuple[Used, ...]]:
        positions = jnp.arange(len(tokens))
        if reset is not None:
            positions = positions - jax.lax.cummax(jnp.where(reset, positions, 0))
        run = {"starting": reset is not None, "show": show}
        stream, used = self._layer(self.definition.embed, params, {"ids": tokens}, positions)
        rest = None if added is None else list(added)
        for one, count in zip(self.definition.layers, self.counts, strict=True):
            own = None if rest is None else tuple(rest.pop(0) for _ in range(count))
            stream, found = self._layer(one, params, stream, positions, own, **run)
            used += found
        return stream, used

    def _layer(
        self,
        one: Layer,
        params: Params,
        stream: Stream,
        positions: Array,
        added: tuple[Array, ...] | None = None,
        **run: bool,
    ) -> tuple[Stream, tuple[Used, ...]]:
        tensors = {
            # Nothing is differentiated by what is frozen, nor passed below the first trained layer.
            own: params[name] if name in self.trained else jax.lax.stop_gradient(params[name])
            for own, name in one.tensors(self.shapes).items()
        }
        stream, _, used = through(one.program, tensors, stream, positions, None, added, **run)
        return stream, used


def _not_here(name: str) -> Any:
    def refuse(*_: Any, **__: Any) -> Any:
        raise ValueError(
            f"{name}: expected a model that trains, got a published checkpoint; open the run with "
            "dsfjax.open to continue text."
        )

    return refuse
