"""One mixer for every architecture: what surrounds the recurrence, and its one-step form."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float

from dsfjax._util.names import choose
from dsfjax.core import KernelSystem, KVCache, Precision, System
from dsfjax.core.composition import with_length
from dsfjax.core.transitions import to_heads
from dsfjax.engines import WHOLE, Shards, materialize, scan, scan_shards, step
from dsfjax.nn.pieces import ACTIVATIONS, GLU, CausalConv, dropout, linear, norm, param_dtype
from dsfjax.nn.precision import products
from dsfjax.systems import Architecture, Place, Surrounding

BARE, DEFAULT = Surrounding(), Precision()


class MixerState(NamedTuple):
    """What a mixer carries from step to step.

    Attributes:
        conv: The convolution's tail, or the last token where tokens are shifted, or None.
        h: The state of the system.
        started: Whether it is that of a token, (): before the first one it is not.
        past: What the architecture carries next to the state, or None (`Architecture.past`).
    """

    conv: Array | None
    h: Array | KVCache
    started: Array | bool = True
    past: Any = None


class _Read(NamedTuple):
    """What a mixer makes of its tokens.

    Attributes:
        system: The System, which acts on values.
        values: The values.
        gated: What the gate reads, (L, d).
        tail: What the next tokens need of these (`MixerState.conv`).
        past: What is carried next to the state.
        solved: Outputs and last state, where they are known without a scan; else None.
    """

    system: System | KernelSystem
    values: Array
    gated: Array
    tail: Array | None
    past: Any
    solved: tuple[Array, Array] | None


class Mixer(nnx.Module):
    r"""An architecture with its surroundings.

    .. math::
       y = W_{out} \, \mathrm{norm}(f(g(W_z x) ⊙ s)), \qquad
       s = \mathrm{norm}_h(\mathrm{scan}(\mathrm{conv}(W_{in} x))) .

    Every part but the recurrence and W_out is optional. Works on one sequence (L, d), or on this
    device's part of one that is cut over devices (``shards``).

    Attributes:
        arch: The `Architecture` over the inner width.
        around: Its `Surrounding`.
        core: Parameters of the architecture, by name.
    """

    def __init__(
        self,
        arch: Architecture,
        d_model: int,
        around: Surrounding = BARE,
        *,
        attention_dropout: float = 0.0,
        method: str = "auto",
        init: str = "published",
        depth: int = 0,
        precision: Precision = DEFAULT,
        shards: Shards = WHOLE,
        rngs: nnx.Rngs,
    ) -> None:
        if shards.axis_name and attention_dropout:
            raise ValueError(
                "attention_dropout: expected 0 where sequences are cut over devices, none of which "
                f"has the attention matrix, got {attention_dropout}; use residual_dropout."
            )
        d_inner = around.expand * d_model
        self.arch, self.around, self.method, self.d_model = arch, around, method, d_model
        self.precision, self.shards = precision, shards
        self.attention_dropout = attention_dropout
        params = arch.init(rngs.params())
        past = None if arch.past is None else jax.eval_shape(arch.past, params)
        if shards.axis_name and (arch.reads_state or not isinstance(past, Place | None)):
            raise ValueError(
                "Mixer: expected an architecture that carries its state alone, which no signals "
                "depend on, where sequences are cut over devices; use sequence_shards = 1."
            )
        self.params_type = type(params)
        self.core = nnx.Dict(
            {k: nnx.Param(v) for k, v in params._asdict().items() if v is not None}
        )
        shapes, system = jax.eval_shape(lambda p: _first_step(arch, p, d_inner), params)
        _check(around, shapes._fields)
        make = partial(
            linear, init=init, bias=around.bias, precision=products(precision), rngs=rngs
        )
        if around.project_in or around.expand > 1:
            self.project_in = make(d_model, d_inner)
        if around.token_shift:
            # From the token before alone in the first channels to the present one in the last.
            ramp = 1 - (jnp.arange(d_inner, dtype=param_dtype()) + 0.5) / d_inner
            self.shift = nnx.Dict({name: nnx.Param(ramp) for name in around.token_shift})
        if around.conv_width:
            convolved = sum(getattr(shapes, name).size for name in around.conv_on) or d_inner
            self.conv = CausalConv(around.conv_width, convolved, rngs=rngs)
        d_out = system.output_width
        if around.head_norm:
            self.head_norm = norm(around.head_norm, d_out // system.num_heads, rngs=rngs)
        if around.whole_norm:
            self.whole_norm = norm(around.whole_norm, d_out, rngs=rngs)
        if around.gate:
            rank = around.rank(d_model, d_out // system.num_heads)
            if rank:
                self.gate_down = make(d_model, rank)
            self.gate = make(rank or d_model, d_out)
        if around.output_norm:
            self.output_norm = norm("rms", d_out, rngs=rngs)
        self.project_out: Any
        if around.glu:
            self.project_out = GLU(d_out, d_model, precision=products(precision), rngs=rngs)
        else:
            self.project_out = make(d_out, d_model, depth=depth)

    def __call__(
        self,
        x: Float[Array, "L d"],
        state: MixerState | None = None,
        *,
        reset: Bool[Array, " L"] | None = None,
        rate: float | Array | None = None,
        key: Array | None = None,
        added: Float[Array, "L e"] | None = None,
    ) -> tuple[Float[Array, "L d"], MixerState]:
        """Mix one sequence.

        Args:
            x: (L, d_model).
            state: Carried from the steps before, or None.
            reset: Boolean (L,), true where a document starts.
            rate: Of that dropout, in place of an ``attention_dropout`` that is not 0.
            key: For dropout on the attention matrix, in training; None in evaluation.
            added: Added to the outputs of the system, before gate and norm; None for nothing.

        Returns:
            Output (L, d_model) and the state after the sequence.
        """
        read = self._read(x, state, reset)
        if key is not None and self.attention_dropout:
            rate = self.attention_dropout if rate is None else rate
            y, h = _attend_with_dropout(read.system, read.values, rate, key, state), None
        elif read.solved is not None:
            y, h = read.solved
        else:
            h0 = None if state is None else state.h
            y, h = self._scan(read.system, read.values, h0)
        y = y if added is None else y + added
        after = MixerState(read.tail, h, jnp.array(True), read.past)  # type: ignore[arg-type]
        return self._output(read.gated, y), after

    def step(
        self, x: Float[Array, " d"], state: MixerState
    ) -> tuple[Float[Array, " d"], MixerState]:
        """Mix one token x (d_model,) with constant memory; `__call__` on a sequence of length 1."""
        read = self._read(x[None], state, None)
        if read.solved is not None:
            (y,), h = read.solved
        else:
            y, h = step(read.system, read.values[0], state.h, precision=self.precision)
        after = MixerState(read.tail, h, jnp.array(True), read.past)
        return self._output(read.gated, y[None])[0], after

    def system(
        self, x: Float[Array, "L d"], *, reset: Bool[Array, " L"] | None = None
    ) -> tuple[System | KernelSystem, Float[Array, "L e"]]:
        """The System of a sequence x (L, d_model), and the tokens that enter it (L, …)."""
        read = self._read(x, None, reset)
        return with_length(read.system, x.shape[0]), read.values

    def init_state(self, max_length: int) -> MixerState:
        """The state before the first token; a kernel's cache gets ``max_length`` slots."""
        dtype = getattr(self.project_out, "linear", self.project_out).kernel[...].dtype
        token = jax.ShapeDtypeStruct((1, self.d_model), dtype)

        def first(x: Array) -> tuple[Array | None, Array | KVCache]:
            read = self._read(x, None, None)
            if isinstance(read.system, KernelSystem):
                return read.tail, read.system.cache(max_length, dtype)
            return read.tail, scan(read.system, read.values)[1]

        shapes = jax.eval_shape(first, token)
        tail, h = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return MixerState(tail, h, jnp.array(False), self.past())

    def past(self) -> Any:
        """What is next to the state before the first token (`Architecture.past`), or None."""
        return None if self.arch.past is None else self.arch.past(self.parameters())

    def parameters(self) -> Any:
        """Parameters of the architecture, the NamedTuple that `Architecture.init` gives."""
        values = {k: v[...] for k, v in self.core.items()}
        return self.params_type(**{k: values.get(k) for k in self.params_type._fields})

    def _scan(
        self, system: System | KernelSystem, tokens: Array, h0: Array | KVCache | None
    ) -> tuple[Array, Array | KVCache]:
        run: Any = scan
        if self.shards.axis_name:
            run = partial(scan_shards, **self.shards._asdict())
        return run(system, tokens, h0, method=self.method, precision=self.precision)

    def _read(self, x: Array, state: MixerState | None, reset: Array | None) -> _Read:
        around, params, tail = self.around, self.parameters(), None
        activation = ACTIVATIONS[around.conv_activation]
        carried = None if state is None else state.conv
        inner = self.project_in(x) if hasattr(self, "project_in") else x
        if around.conv_width and not around.conv_on:
            inner, tail = self._convolved(inner, carried, reset)
            inner = activation(inner)
        continued = self.shards.index > 0 if state is None else state.started
        h: Any = state.h if state is not None and self.arch.reads_state else None
        read = partial(self.arch.read, params, reset=reset, continued=continued, h=h)
        signals, gated = read(inner), x
        if around.token_shift:
            before, tail = self._before(inner, carried, reset)
            for name, share in self.shift.items():
                mixed = inner + share[...][None].astype(inner.dtype) * (before - inner)
                if name == "gate":
                    gated = mixed
                else:
                    # Signals that are not taken from this call are not computed, once compiled.
                    signals = signals._replace(**{name: getattr(read(mixed), name)})
        if around.conv_on:
            branches = [getattr(signals, name) for name in around.conv_on]
            flat = jnp.concatenate([b.reshape(b.shape[0], -1) for b in branches], axis=1)
            if around.conv_width:
                flat, tail = self._convolved(flat, carried, reset)
            ends = list(_cumulative(b.size // b.shape[0] for b in branches))
            parts = jnp.split(activation(flat), ends[:-1], axis=1)
            pairs = zip(around.conv_on, parts, branches, strict=True)
            signals = signals._replace(**{name: part.reshape(b.shape) for name, part, b in pairs})
        past = None if state is None else state.past
        if self.arch.past is not None and self.shards.axis_name:
            past = Place(self.shards.place(x.shape[0], reset))
        system, past = self.arch.advance(params, signals, reset=reset, past=past)
        # What has changed the signals since they were found is not in what was found with them.
        found = None if around.token_shift or around.conv_on else self.arch.solved
        solved = None if found is None else found(signals)
        return _Read(system, self.arch.values(signals), gated, tail, past, solved)

    def _convolved(self, x: Array, tail: Array | None, reset: Array | None) -> tuple[Array, Array]:
        """The short convolution of x, and its own tail; ``tail`` has the inputs before x."""
        if self.shards.axis_name:
            width = self.around.conv_width - 1
            tail = self.shards.halo(x, width)
            if reset is not None:
                # A row belongs to the document of the first step if none starts after it.
                later = jnp.flip(jnp.cumsum(jnp.flip(self.shards.halo(reset, width))))
                tail = jnp.where((jnp.append(later[1:], 0) == 0)[:, None], tail, 0)
        return self.conv(x, tail, reset=reset)

    def _before(self, x: Array, last: Array | None, reset: Array | None) -> tuple[Array, Array]:
        """The token before each of x, and the last of x; ``last`` is the one before x."""
        if self.shards.axis_name:
            last = self.shards.halo(x, 1)
        elif last is None:
            last = jnp.zeros_like(x[:1])
        before = jnp.concatenate([last.astype(x.dtype), x[:-1]])
        return before if reset is None else jnp.where(reset[:, None], 0, before), x[-1:]

    def _output(self, x: Array, y: Array) -> Array:
        """What is made of the outputs y of the system, with a gate that reads x."""
        if self.around.head_norm:
            heads = y.reshape(y.shape[0], -1, self.head_norm.num_features)
            y = self.head_norm(heads).reshape(y.shape)
        if self.around.whole_norm:
            y = self.whole_norm(y)
        if self.around.gate:
            activation = ACTIVATIONS[self.around.gate]
            x = self.gate_down(x) if self.around.gate_rank else x
            inside = self.around.gate_inside
            y = y * (self.gate(activation(x)) if inside else activation(self.gate(x)))
        y = ACTIVATIONS[self.around.output_activation](y)
        if self.around.output_norm:
            y = self.output_norm(y)
        y = ACTIVATIONS["gelu_tanh"](y) if self.around.glu else y
        return self.project_out(y)


def _attend_with_dropout(
    system: System | KernelSystem,
    tokens: Array,
    rate: float | Array,
    key: Array,
    state: MixerState | None,
) -> Array:
    """Outputs with dropout on the normalised attention matrix; the tokens are the values."""
    if isinstance(system, System) and system.eta is None:
        raise ValueError(
            "attention_dropout: this mixer has no normalised attention matrix (its System has no "
            "normaliser); set attention_dropout = 0 and use residual_dropout."
        )
    if state is not None:
        raise ValueError(
            "attention_dropout: training starts from an empty state; got a carried one."
        )
    phi = dropout(materialize(system), rate, key)
    groups = system.value_shape[0] if isinstance(system, KernelSystem) else system.num_heads
    values = to_heads(tokens.reshape(tokens.shape[0], groups, -1), phi.shape[0])
    y = jnp.einsum("hts,shp->thp", phi, values, precision="highest")
    return y.reshape(tokens.shape[0], -1).astype(tokens.dtype)


def _first_step(arch: Architecture, params: Any, width: int) -> tuple[Any, System | KernelSystem]:
    """Signals and System of one token of zeros, for their shapes."""
    signals = arch.signals(params, jnp.zeros((1, width), param_dtype()))
    return signals, arch.assemble(params, signals)


def _check(around: Surrounding, signals: tuple[str, ...]) -> None:
    activations = tuple(ACTIVATIONS)
    for name in ("head_norm", "whole_norm"):
        if (kind := getattr(around, name)) is not None:
            choose(f"Surrounding.{name}", kind, ("rms", "layer"))
    for name in around.token_shift:
        choose("Surrounding.token_shift", name, (*signals, "gate"))
    if "gate" in around.token_shift and (around.project_in or around.expand > 1 or not around.gate):
        raise ValueError(
            "Surrounding: expected a gate and no map into the recurrence where the gate reads "
            "shifted tokens, which are those of the recurrence; leave 'gate' out of token_shift."
        )
    if around.token_shift and around.conv_width:
        raise ValueError(
            "Surrounding: expected a token shift or a convolution, got both; the convolution reads "
            "the token before as well."
        )
    choose("Surrounding.conv_activation", around.conv_activation, activations)
    choose("Surrounding.output_activation", around.output_activation, activations)
    if isinstance(around.gate_rank, str):
        choose("Surrounding.gate_rank", around.gate_rank, ("channels", "root"))
    if around.gate_inside and not (around.gate and around.gate_rank):
        raise ValueError(
            "Surrounding: expected a gate of low rank where its activation is between two maps, "
            f"got gate = {around.gate!r} and gate_rank = {around.gate_rank!r}."
        )
    if around.gate is not None:
        choose("Surrounding.gate", around.gate, activations)
    for name in around.conv_on:
        choose("Surrounding.conv_on", name, signals)


def _cumulative(sizes: Any) -> Any:
    total = 0
    for size in sizes:
        total += size
        yield total
