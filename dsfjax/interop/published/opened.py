"""An opened checkpoint: logits, decoding, and the Systems that its layers are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike

from dsfjax._util import tokenizer
from dsfjax.core.dtypes import state_dtype
from dsfjax.interop.published.layerwise import Params, back, differentiable, through
from dsfjax.interop.published.naming import REGISTRY, Definition, Layer, Stream
from dsfjax.interop.published.running import Used
from dsfjax.interop.published.sampling import check_sampling, sampled
from dsfjax.interop.published.tensor_files import Config, write_folder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Ids = ArrayLike | Sequence[Any]
State = tuple[dict[str, Any], ...]
_PREFILL = 512


class Piece(NamedTuple):
    """A stretch of a text that a model reads piece by piece.

    Attributes:
        begin: Place of its first token in the text.
        ids: Its tokens, (L,).
        logits: Of the token after each, (L, vocabulary).
        systems: As of `Opened.systems`, on these tokens. Their states begin where the piece before
            has ended; attention also reads keys and values before, which are not among these.
    """

    begin: int
    ids: Array
    logits: Array
    systems: tuple[tuple[Used, ...], ...]


class Passes(NamedTuple):
    """What one forward and one backward pass of a model compute on a text.

    Attributes:
        logits: Logits of the next token at every step, (L, vocabulary).
        systems: As of `Opened.systems`.
        gradients: ∂L/∂y of every System, L the mean of −log p(next token): per layer and System,
            (L, d_out).
    """

    logits: Array
    systems: tuple[tuple[Used, ...], ...]
    gradients: tuple[tuple[Array, ...], ...]


class Opened:
    """A language model, by the names of its file. `dsfjax.open` makes one.

    Every layer is one function that assembles the Systems of its mixers and runs them: `logits`,
    `generate` and `systems` are three uses of the same lines. Layers with the same settings are one
    compiled program, so that compilation does not grow with their number.

    Attributes:
        path: The folder, of the checkpoint or of the run.
        config: The config of the model, as a dict: config.json of a checkpoint.
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
        return tokenizer.read(self.path / tokenizer.FILE)

    def logits(self, ids: Ids) -> Array:
        """Logits of the next token at every step.

        Args:
            ids: Tokens (L,) or (B, L).

        Returns:
            (…, L, vocab_size).

        Raises:
            ValueError: If they are no tokens of this model, or layers are missing.
        """
        return self.apply(self.params, ids)

    def apply(
        self, params: Params, ids: Ids, *, nudges: Sequence[tuple[Array, ...]] | None = None
    ) -> Array:
        """`logits` as a pure function of the parameters, to differentiate and to train.

        Args:
            params: As `params`.
            ids: Tokens (L,) or (B, L); (L,) with ``nudges``.
            nudges: Per layer and System of `systems`, what is added to its output (L, d_out). With
                the outputs of changed Systems less the old ones, these are the exact logits after
                an intervention.
        """
        return self._forward(params, self._tokens(ids), nudges=nudges)[-1][0]["logits"]

    def hidden(self, ids: Ids) -> Array:
        """What enters the first layer, and what leaves every one, before the final norm.

        Args:
            ids: Tokens (L,) or (B, L).

        Returns:
            (num_layers + 1, …, L, d).
        """
        passed = self._forward(self.params, self._tokens(ids))
        return jnp.stack([stream["x"] for stream, _ in passed[:-1]])

    def systems(self, ids: Ids) -> tuple[tuple[Used, ...], ...]:
        """The Systems of every layer on given tokens, and what they run on.

        Args:
            ids: Tokens (L,) or (B, L).

        Returns:
            Per layer, a tuple of ``(system, u)`` for `dsfjax.scan`, `dsfjax.materialize` and
            `dsfjax.analysis`: one per mixer, several where a layer has several, none where it has
            none (an MLP). With a batch, every array has its axis first.
        """
        passed = self._forward(self.params, self._tokens(ids), show=True)
        return tuple(used for _, used in passed[1:-1])

    def pieces(self, ids: Ids, length: int = _PREFILL) -> Iterator[Piece]:
        """Read a long text piece by piece, with the states that the piece before has left.

        Logits are those of the whole text at once, up to rounding. States are constant in size;
        caches of attention without a window grow with the text.

        Args:
            ids: Tokens (L,).
            length: Tokens of a piece, at least two; the last one may be shorter.

        Yields:
            The pieces.
        """
        ids = self._tokens(ids)
        if ids.ndim != 1 or length < 2:
            raise ValueError(
                "pieces: expected token ids (L,) and a length of at least 2, got "
                f"{list(ids.shape)} and {length}."
            )
        state: State | None = None
        for begin in range(0, len(ids), length):
            part = ids[begin : begin + length]
            positions = jnp.arange(begin, begin + len(part))
            logits, state, used = self._continue(part, positions, state, len(ids) + 1, show=True)
            yield Piece(begin, part, logits, used[1:-1])

    def passes(self, ids: Ids) -> Passes:
        """Logits, Systems and gradients of a text, by one forward and one backward pass.

        Args:
            ids: Tokens (L,), at least two.

        Returns:
            `Passes`.
        """
        ids = self._tokens(ids)
        if ids.ndim != 1 or len(ids) < 2:
            raise ValueError(f"expected at least two token ids (L,), got {list(ids.shape)}.")
        passed = self._forward(self.params, ids, show=True)
        *_, (after, _) = passed
        down = {name: jnp.zeros_like(x) for name, x in differentiable(after).items()}
        down["logits"] = _loss_gradient(after["logits"], ids)
        found, every = [], list(self._every(self.params))
        # From the head to the first layer; what leaves a layer is what enters the next.
        for (one, tensors), (stream, _), (_, used) in zip(
            every[:0:-1], passed[-2::-1], passed[:0:-1], strict=True
        ):
            nudges = tuple(jnp.zeros((len(ids), s.output_width), u.dtype) for s, u in used)
            positions = jnp.arange(len(ids))
            down, own = back(one.program, tensors, stream, positions, nudges, down)
            found.append(own)
        systems = tuple(used for _, used in passed[1:-1])
        return Passes(after["logits"], systems, tuple(found[:0:-1]))

    def layer(self, index: int) -> OpenedLayer:
        """One layer, for its own input; the only thing that a partly opened model runs."""
        if index not in self.held:
            raise ValueError(f"layer: expected one of {list(self.held)}, got {index}.")
        one = self.definition.layers[index]
        return OpenedLayer(one, self._of(one, self.params))

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
        check_sampling(n, temperature, top_k, top_p)
        key = jax.random.key(0) if key is None else key
        total, state = ids.shape[1] + n, None
        logits = jnp.zeros(())
        for begin in range(0, ids.shape[1], _PREFILL):
            part = slice(begin, begin + _PREFILL)
            logits, state, _ = self._continue(
                ids[:, part], positions[:, part], state, total, starting=True
            )
        found, place = [], positions[:, -1:]
        for i in range(n):
            token = sampled(logits[:, -1], jax.random.fold_in(key, i), temperature, top_k, top_p)
            found.append(token)
            if i + 1 < n:
                place = place + 1
                logits, state, _ = self._continue(token[:, None], place, state, total)
        new = jnp.stack(found, axis=1)
        return new[0] if single else new

    def save(self, path: Path | str, params: Params | None = None) -> Path:
        """Write a checkpoint in the format that was read: the same names, layouts and config.

        Args:
            path: A folder, which must not have a checkpoint yet.
            params: Parameters, such as trained ones; those of the model by default.

        Returns:
            The folder: config.json, model.safetensors, and the files of the tokenizer.

        Raises:
            FileExistsError: If it has one.
            ValueError: If names or shapes are not those of the model, or layers are missing; if it
                is one of our own, for which there is no published format.
        """
        self._expect_whole()
        if (kind := self.config.get("model_type")) not in REGISTRY:
            raise ValueError(
                f"save: expected a model of a published format, got {kind}; {self.path} holds it."
            )
        path, params = Path(path), self.params if params is None else params
        given, own = ({n: x.shape for n, x in each.items()} for each in (params, self.params))
        if given != own:
            wrong = sorted(n for n in given | own if given.get(n) != own.get(n))
            raise ValueError(f"save: expected names and shapes of the model, not so: {wrong[:5]}.")
        dtypes = {name: str(self.dtype) for name in ("dtype", "torch_dtype") if name in self.config}
        write_folder(path, {**self.config, **dtypes}, params, self.path)
        return path

    def _continue(
        self,
        ids: Array,
        positions: Array,
        state: State | None,
        capacity: int,
        *,
        starting: bool = False,
        show: bool = False,
    ) -> tuple[Array, State, tuple[tuple[Used, ...], ...]]:
        """Logits of further tokens (L,) or (B, L), the state after them, and the Systems.

        Unless these are shown, logits are of the last step only: there may be many ids.
        """
        stream: Stream = {"ids": ids}
        states: list[dict[str, Any]] = []
        systems: list[tuple[Used, ...]] = []
        for i, (one, tensors) in enumerate(self._every(self.params)):
            if one is self.definition.head and not show:
                stream, positions = jax.tree.map(lambda x: x[:, -1:], (stream, positions))
            stream, left, used = through(
                *(one.program, tensors, stream, positions, None if state is None else state[i]),
                batched=ids.ndim == 2,
                capacity=capacity,
                starting=starting,
                keep=True,
                show=show,
            )
            states.append(left)
            systems.append(used)
        return stream["logits"], tuple(states), tuple(systems)

    @cached_property
    def _names(self) -> dict[Layer, dict[str, str]]:
        """The tensors of every layer that is opened: names of the file by those within it."""
        model = self.definition
        layers = (model.embed, *(model.layers[i] for i in self.held), model.head)
        return {one: one.tensors(self.params) for one in layers}

    def _of(self, one: Layer, params: Params) -> Params:
        return {own: params[name] for own, name in self._names[one].items()}

    def _every(self, params: Params) -> Iterator[tuple[Layer, Params]]:
        """The embedding, every layer and the head, with their tensors."""
        self._expect_whole()
        model = self.definition
        for one in (model.embed, *model.layers, model.head):
            yield one, self._of(one, params)

    def _expect_whole(self) -> None:
        if len(self.held) < self.num_layers:
            raise ValueError(
                f"expected all {self.num_layers} layers, got those of open(layers="
                f"{list(self.held)}); open the model without layers, or use layer(i)."
            )

    def _forward(
        self,
        params: Params,
        ids: Array,
        *,
        show: bool = False,
        nudges: Sequence[tuple[Array, ...]] | None = None,
    ) -> list[tuple[Stream, tuple[Used, ...]]]:
        """What leaves the embedding, every layer and the head, and their Systems."""
        stream: Stream = {"ids": ids}
        positions = jnp.broadcast_to(jnp.arange(ids.shape[-1]), ids.shape)
        found = []
        added = [None, *(nudges or [None] * self.num_layers), None]
        for (one, tensors), own in zip(self._every(params), added, strict=True):
            stream, _, used = through(
                *(one.program, tensors, stream, positions, None, own),
                batched=ids.ndim == 2,
                show=show,
            )
            found.append((stream, used))
        return found

    def check_ids(self, ids: Ids) -> None:
        """Raise `ValueError` unless these are tokens of the model."""
        self._tokens(ids)

    def _tokens(self, ids: Ids) -> Array:
        ids = jnp.asarray(np.asarray(ids) if isinstance(ids, list | tuple) else ids)
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

        def tokens(one: Any) -> np.ndarray:
            return np.asarray(self.tokenizer.encode(one).ids if isinstance(one, str) else one)

        if isinstance(prompt, list | tuple):
            several = bool(prompt) and (isinstance(prompt[0], str) or np.ndim(prompt[0]) > 0)
        else:
            several = not isinstance(prompt, str) and np.ndim(prompt) > 1
        rows = [tokens(one) for one in prompt] if several else [tokens(prompt)]
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
        return jnp.asarray(padded), jnp.asarray(places, jnp.int32), not several


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
        positions = jnp.arange(x.shape[0])
        return through(self.definition.program, self.params, stream, positions, show=show)


def mean_loss(logits: Array, ids: Array) -> Array:
    """The mean of −log p of the next token, in nats."""
    logs = jax.nn.log_softmax(logits[:-1].astype(state_dtype(logits.dtype)), axis=-1)
    return -jnp.take_along_axis(logs, ids[1:, None], axis=-1).mean()


_loss_gradient = jax.jit(jax.grad(mean_loss))


def _check_ids(ids: np.ndarray, vocab_size: int) -> None:
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise ValueError(
            f"expected token ids from 0 to {vocab_size - 1}, got {ids.min()} to {ids.max()}."
        )
