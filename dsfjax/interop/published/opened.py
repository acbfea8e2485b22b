"""An opened checkpoint: logits, decoding, and the Systems that its layers are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike

from dsfjax.interop.published.folder import Config
from dsfjax.interop.published.naming import Definition, Layer, Stream, Weights
from dsfjax.interop.published.running import Run, Used

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Params = dict[str, Array]
State = tuple[dict[str, Any], ...]
_PREFILL = 512


class Opened:
    """A published language model, by the names of its file. `dsfjax.open` makes one.

    Every layer is one function that assembles the Systems of its mixers and runs them: `logits`,
    `generate` and `systems` are three uses of the same lines. Layers with the same settings are one
    compiled program, so that compilation does not grow with their number.

    Attributes:
        path: The folder.
        config: Its config.json, as a dict.
        definition: The layers, and where their tensors are.
        params: Tensors of the layers that were opened, by the names of the file, in one dtype.
        dtype: That dtype.
        held: Numbers of the layers that were opened.
    """

    def __init__(
        self,
        path: Path,
        config: Config,
        definition: Definition,
        params: Params,
        dtype: DTypeLike,
        held: tuple[int, ...],
    ) -> None:
        self.path, self.config, self.definition = path, config.values, definition
        self.params, self.dtype, self.held = params, jnp.dtype(dtype), held

    def __repr__(self) -> str:
        name, count = self.config.get("model_type"), sum(x.size for x in self.params.values())
        layers = f"{len(self.held)} of {self.num_layers}" * (len(self.held) < self.num_layers)
        return f"<dsfjax.Opened {name}, {layers or self.num_layers} layers, {count:,} parameters>"

    @property
    def num_layers(self) -> int:
        """How many layers the model has."""
        return len(self.definition.layers)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The ``tokenizers.Tokenizer`` of tokenizer.json.

        Raises:
            FileNotFoundError: If the folder has none.
            ValueError: If it cannot be read.
        """
        file = self.path / "tokenizer.json"
        if not file.is_file():
            raise FileNotFoundError(
                f"{file}: expected a tokenizer, found none; give token ids instead of text."
            )
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise ImportError("tokenizer: tokenizers is missing: pip install 'dsfjax[open]'") from (
                error
            )
        try:
            return Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises the class itself
            raise ValueError(f"{file}: expected a tokenizer, got: {error}.") from error

    def logits(self, ids: ArrayLike) -> Array:
        """Logits of the next token at every step.

        Args:
            ids: Tokens (L,) or (B, L).

        Returns:
            (…, L, vocab_size).

        Raises:
            ValueError: If they are no tokens of this model, or layers are missing.
        """
        return self.apply(self.params, ids)

    def apply(self, params: Params, ids: ArrayLike) -> Array:
        """`logits` as a pure function of the parameters, to differentiate and to train."""
        return self._forward(params, self._tokens(ids))[-1]["logits"]

    def hidden(self, ids: ArrayLike) -> Array:
        """What enters the first layer, and what leaves every one, before the final norm.

        Args:
            ids: Tokens (L,) or (B, L).

        Returns:
            (num_layers + 1, …, L, d).
        """
        streams = self._forward(self.params, self._tokens(ids))
        return jnp.stack([stream["x"] for stream in streams[:-1]])

    def systems(self, ids: ArrayLike) -> tuple[tuple[Used, ...], ...]:
        """The Systems of every layer on given tokens, and what they run on.

        Args:
            ids: Tokens (L,) or (B, L).

        Returns:
            Per layer, a tuple of ``(system, u)`` for `dsfjax.scan`, `dsfjax.materialize` and
            `dsfjax.analysis`: one per mixer, several where a layer has several, none where it has
            none (an MLP). With a batch, every array has its axis first.
        """
        found: list[tuple[Used, ...]] = []
        self._forward(self.params, self._tokens(ids), found)
        return tuple(found)

    def layer(self, index: int) -> OpenedLayer:
        """One layer, for its own input; the only thing that a partly opened model runs."""
        if index not in self.held:
            raise ValueError(f"layer: expected one of {list(self.held)}, got {index}.")
        return OpenedLayer(self.definition.layers[index], self._own(self.params, index))

    def generate(
        self,
        prompt: ArrayLike | str | Sequence[Any],
        n: int,
        *,
        key: Array | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> Array:
        """Continue prompts. The states are constant in size, caches are as long as their windows.

        Args:
            prompt: Tokens (L,) or (B, L), text, or a sequence of prompts of different lengths; the
                shorter ones are padded on the left, which changes no number.
            n: How many tokens.
            key: For sampling; `jax.random.key` of 0 by default.
            temperature: Of the softmax; 0 takes the likeliest token.
            top_k: Sample among so many of the likeliest tokens.
            top_p: Sample among the likeliest tokens that have this probability together.

        Returns:
            The new tokens alone, (n,) or (B, n).

        Raises:
            ValueError: For arguments that make no sense, or a prompt without tokens.
        """
        ids, positions, single = self._prompts(prompt)
        _check_sampling(n, temperature, top_k, top_p)
        key = jax.random.key(0) if key is None else key
        total = ids.shape[1] + n
        state: State | None = None
        logits = jnp.zeros(())
        length = ids.shape[1]
        for begin in range(0, max(length - 1, 1), _PREFILL):
            end = begin + _PREFILL  # no part has one step, which would pass for a continuation
            part = slice(begin, length if end + 1 >= length else end)
            logits, state = self._continue(ids[:, part], positions[:, part], state, total)
        found, place = [], positions[:, -1:]
        for i in range(n):
            token = _sampled(logits, jax.random.fold_in(key, i), temperature, top_k, top_p)
            found.append(token)
            if i + 1 < n:
                place = place + 1
                logits, state = self._continue(token[:, None], place, state, total)
        new = jnp.stack(found, axis=1)
        return new[0] if single else new

    def _continue(
        self, ids: Array, positions: Array, state: State | None, capacity: int
    ) -> tuple[Array, State]:
        """Logits of the last of further tokens (B, L), and the state after them."""
        stream: Stream = {"ids": ids}
        states: list[dict[str, Any]] = []
        every = self._every()
        for i, (one, tensors) in enumerate(every):
            if i == len(every) - 1:  # of the last step only: there may be many tokens
                stream = {name: x[:, -1:] for name, x in stream.items()}
            own = None if state is None else state[i]
            keep, at = True, positions[:, -ids.shape[1] :]
            at = at[:, -1:] if i == len(every) - 1 else at
            stream, left, _ = _through(
                one, tensors, stream, at, own, batched=True, capacity=capacity, keep=keep
            )
            states.append(left)
        return stream["logits"][:, -1], tuple(states)

    def _every(self) -> list[tuple[Layer, Params]]:
        self._expect_whole()
        model = self.definition
        return [(one, self._of(one)) for one in (model.embed, *model.layers, model.head)]

    def _of(self, one: Layer, params: Params | None = None) -> Params:
        params = self.params if params is None else params
        return {own: params[name] for own, name in one.tensors(params).items()}

    def _own(self, params: Params, index: int) -> Params:
        return self._of(self.definition.layers[index], params)

    def _expect_whole(self) -> None:
        if len(self.held) < self.num_layers:
            raise ValueError(
                f"expected all {self.num_layers} layers, got those of open(layers="
                f"{list(self.held)}); open the model without layers, or use layer(i)."
            )

    def _forward(
        self, params: Params, ids: Array, systems: list[tuple[Used, ...]] | None = None
    ) -> list[Stream]:
        """What leaves the embedding, every layer and the head."""
        self._expect_whole()
        model, stream, found = self.definition, {"ids": ids}, []
        positions = jnp.broadcast_to(jnp.arange(ids.shape[-1]), ids.shape)
        for one in (model.embed, *model.layers, model.head):
            stream, _, used = _through(
                *(one, self._of(one, params), stream, positions, None),
                batched=ids.ndim == 2,
                show=systems is not None,
            )
            found.append(stream)
            if systems is not None:
                systems.append(used)
        if systems is not None:
            systems[:] = systems[1:-1]  # those of the layers
        return found

    def _tokens(self, ids: ArrayLike) -> Array:
        ids = jnp.asarray(ids)
        if ids.ndim not in (1, 2) or not jnp.issubdtype(ids.dtype, jnp.integer) or not ids.size:
            raise ValueError(
                f"expected token ids, whole numbers (L,) or (B, L), got {ids.dtype}"
                f"{list(ids.shape)}."
            )
        if not isinstance(ids, Tracer):
            _check_ids(np.asarray(ids), self.definition.vocab_size)
        return ids

    def _prompts(self, prompt: Any) -> tuple[Array, Array, bool]:
        """Tokens (B, L), their places in the prompt, negative for padding; and if it is one."""
        if isinstance(prompt, str):
            prompt = self.tokenizer.encode(prompt).ids
        if isinstance(prompt, list | tuple) and prompt and not np.isscalar(prompt[0]):
            prompt = [self.tokenizer.encode(x).ids if isinstance(x, str) else x for x in prompt]
            rows = [np.asarray(x) for x in prompt]
            single = False
        elif isinstance(prompt, list | tuple) and prompt and isinstance(prompt[0], str):
            rows, single = [np.asarray(self.tokenizer.encode(x).ids) for x in prompt], False
        else:
            array = np.asarray(prompt)
            single = array.ndim < 2
            rows = list(array) if array.ndim == 2 else [array]
        for row in rows:
            if row.ndim != 1 or not row.size or not np.issubdtype(row.dtype, np.integer):
                raise ValueError(
                    "generate: expected prompts of at least one token, whole numbers (L,), got "
                    f"{row.dtype}{list(row.shape)}."
                )
            _check_ids(row, self.definition.vocab_size)
        longest = max(row.size for row in rows)
        padded = np.zeros((len(rows), longest), np.int32)
        places = np.arange(longest) - np.array([[longest - row.size] for row in rows])
        for one, row in zip(padded, rows, strict=True):
            one[longest - row.size :] = row
        return jnp.asarray(padded), jnp.asarray(places, jnp.int32), single


class OpenedLayer:
    """One layer of an opened model, as a function of its own input.

    Attributes:
        definition: The function, its settings and where its tensors are.
        params: Its tensors, by their names within the layer.
    """

    def __init__(self, definition: Layer, params: Params) -> None:
        self.definition, self.params = definition, params

    def __call__(self, x: Array, **carried: Array) -> Array:
        """What leaves the layer for an input (L, d); ``carried`` is what else it reads."""
        return self._run(x, carried, show=False)[0]["x"]

    def systems(self, x: Array, **carried: Array) -> tuple[Used, ...]:
        """Its Systems on an input (L, d), and what they run on."""
        return self._run(x, carried, show=True)[2]

    def _run(self, x: Array, carried: Stream, show: bool) -> tuple[Stream, Any, tuple[Used, ...]]:
        stream = {"x": x, **carried}
        return _through(
            self.definition, self.params, stream, jnp.arange(x.shape[0]), None, show=show
        )


@partial(jax.jit, static_argnames=("one", "batched", "capacity", "keep", "show"))
def _compiled(
    one: tuple[Any, ...],
    tensors: Params,
    stream: Stream,
    positions: Array,
    state: dict[str, Any] | None,
    *,
    batched: bool,
    capacity: int | None,
    keep: bool,
    show: bool,
) -> tuple[Stream, dict[str, Any], tuple[Used, ...]]:
    kind, settings = one

    def of_sequence(
        stream: Stream, positions: Array, state: dict[str, Any] | None
    ) -> tuple[Stream, dict[str, Any], tuple[Used, ...]]:
        # Only where something continues can there be padding, and a document that starts within.
        reset = positions == 0 if keep and positions.shape[0] > 1 else None
        run = Run(positions, reset=reset, state=state, capacity=capacity)
        out = kind(Weights(tensors), stream, run, **dict(settings))
        return out, run.left if keep else {}, tuple(run.systems) if show else ()

    return (
        jax.vmap(of_sequence)(stream, positions, state)
        if batched
        else of_sequence(stream, positions, state)
    )


def _through(
    one: Layer,
    tensors: Params,
    stream: Stream,
    positions: Array,
    state: dict[str, Any] | None,
    *,
    batched: bool = False,
    capacity: int | None = None,
    keep: bool = False,
    show: bool = False,
) -> tuple[Stream, dict[str, Any], tuple[Used, ...]]:
    """A layer as a program that all layers of its kind share."""
    return _compiled(
        *((one.kind, one.settings), tensors, stream, positions, state),
        batched=batched,
        capacity=capacity,
        keep=keep,
        show=show,
    )


def _check_ids(ids: np.ndarray, vocab_size: int) -> None:
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise ValueError(
            f"expected token ids from 0 to {vocab_size - 1}, got {ids.min()} to {ids.max()}."
        )


def _check_sampling(n: int, temperature: float, top_k: int | None, top_p: float | None) -> None:
    if n < 1:
        raise ValueError(f"generate: expected n of at least 1 token, got {n}.")
    if not temperature >= 0:
        raise ValueError(f"generate: expected temperature of at least 0, got {temperature}.")
    if top_k is not None and top_k < 1:
        raise ValueError(f"generate: expected top_k of at least 1, got {top_k}.")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"generate: expected top_p above 0 and at most 1, got {top_p}.")


@partial(jax.jit, static_argnums=(2, 3, 4))
def _sampled(
    logits: Array, key: Array, temperature: float, top_k: int | None, top_p: float | None
) -> Array:
    """One token per sequence from logits (B, vocab)."""
    if temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits.astype(jnp.float32) / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if top_p is not None and top_p < 1:
        ordered = jnp.sort(logits, axis=-1)[:, ::-1]
        share = jax.nn.softmax(ordered, axis=-1)
        enough = jnp.cumsum(share, axis=-1) - share < top_p  # the first that reach it, with it
        least = jnp.min(jnp.where(enough, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)


def check(definition: Definition, shapes: dict[str, Any], held: Iterable[int]) -> set[str]:
    """The tensors that layers ask for, by tracing every kind of layer once.

    Args:
        definition: The model.
        shapes: `jax.ShapeDtypeStruct` by the names of the file.
        held: Numbers of the layers that are opened.

    Returns:
        The names of the file that are read.

    Raises:
        ValueError: If one is missing or misshapen, or none reads what is there.
    """
    model, held = definition, list(held)
    read: dict[Any, set[str]] = {}
    every: set[str] = set()
    chosen = [model.layers[i] for i in held]
    stream: Stream = {"ids": jax.ShapeDtypeStruct((2,), jnp.int32)}
    partly = len(held) < len(model.layers)
    for one in (model.embed, *chosen, *([] if partly else [model.head])):
        names = one.tensors(shapes)
        tensors = {own: shapes[name] for own, name in names.items()}
        form = {own: x.shape for own, x in tensors.items()}
        given = {name: (x.shape, str(x.dtype)) for name, x in stream.items()}
        kind = (one.kind, one.settings, str(form), str(given))
        if kind not in read:
            used: set[str] = set()

            def run(tensors: Any, stream: Stream, one: Layer = one, names: Any = names, used=used):
                w = Weights(tensors, names, used=used)
                return one(w, stream, Run(jnp.arange(2)))

            read[kind] = used
            run_shapes = jax.eval_shape(run, tensors, stream)
            read[(*kind, "after")] = run_shapes  # type: ignore[assignment]
        stream = read[(*kind, "after")]  # type: ignore[assignment]
        every |= {names[own] for own in read[kind]}
    return every
