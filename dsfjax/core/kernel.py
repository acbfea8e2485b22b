r"""Softmax attention: a mixer that no finite-dimensional system represents.

The kernel exp(qᵀk) has infinitely many features, so its state is the past itself. `KernelSystem`
keeps the scores' factors, the values and the normaliser; `KVCache` is its state, which grows by
one slot per step.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from dsfjax.core.diagonal import Scalar
from dsfjax.core.dtypes import real_numbers, state_dtype
from dsfjax.core.pytree import constant, pytree, static, time_leaves
from dsfjax.core.transitions import Transition, expect, to_heads


@pytree
class KernelSystem:
    r"""Normalised exponential-kernel attention over the L steps of one sequence.

    .. math:: y_{t,h} = \frac{1}{η_{t,h}} \sum_{s} e^{x_{t,s,h}} (W u_s)_{v(h)}, \qquad
              η_{t,h} = \sum_{s} e^{x_{t,s,h}} + e^{σ_h}, \qquad
              x_{t,s,h} = \mathrm{cap}(q_{t,h}^\top A_t ⋯ A_{s+1} k_{s,h})
              + \sum_{r=s+1}^{t} \log a_{r,h} .

    Head h reads the values of their head v(h) = ⌊h V / H⌋: H / V heads in a row share them. The
    sums run over s ≤ t from the last reset on; with a window only over its last ``window``
    steps, and over the first ``keep_first`` steps after the reset. The soft cap is
    cap(x) = c tanh(x / c), the identity without one; it bounds the product of query and key, and
    the decay is added afterwards. Scale q beforehand (softmax attention uses q / √m); rotary
    positions and norms act on q and k beforehand as well.

    Attributes:
        q: Queries (L, H, m).
        k: Keys (L, G, m), G groups of heads, G divides H.
        W: Value map (V·p, d), constant in time; None if the token is the value.
        reset: Boolean (L,) or None; attention does not reach back across a reset.
        transition: What happens between the step of a key and that of a query. A `Scalar`, real and
            positive, is the decay a_t of the weights (forgetting attention; constant in time,
            ALiBi). Any other real transition is the A_t that moves the keys (`Diagonal`: a decay
            per feature; `DiagonalPlusLowRank`: PaTH), with a head axis of G or H. None for nothing.
        log_decay: log a_t (T, H) next to a transition that moves the keys, or None.
        sink: σ (H,), the score of a learned sink per head, constant in time: it takes a share of
            the normaliser and has no value. None for no sink. (Tokens that serve as sinks are those
            of ``keep_first``.)
        num_channels: p, the value channels per head, static.
        value_heads: V, the heads of the values, static; V divides H. None for H. The heads that
            share values are never copied: the cache keeps V·p numbers of them per step.
        window: How many steps a query sees, itself included, static; None for all.
        keep_first: How many steps at the beginning of its document (from the last reset on) a query
            sees whatever the window, static: attention sinks that are tokens. The cache keeps them
            next to the window. 0 for none; without a window it changes nothing.
        soft_cap: c > 0, static; None for no cap.

    Raises:
        ValueError: While tracing, if shapes do not fit together.

    References:
        Decay: Lin et al. (2025), arXiv:2503.02130; Press et al. (2021), arXiv:2108.12409. Soft cap:
        Gemma 2, arXiv:2408.00118. Sink: gpt-oss, arXiv:2508.10925. First tokens that are kept:
        Xiao et al. (2023), arXiv:2309.17453.

    Example:
        Weights that halve with every step, over a window of two:

        >>> import dsfjax
        >>> q = jnp.zeros((3, 1, 2))
        >>> halves = dsfjax.Scalar(jnp.log(jnp.array([[0.5]])))
        >>> s = dsfjax.KernelSystem(q, q, transition=halves, window=2, num_channels=1)
        >>> [round(weight, 3) for weight in dsfjax.materialize(s)[0, 2].tolist()]
        [0.0, 0.333, 0.667]

        The first token next to a window of one:

        >>> s = dsfjax.KernelSystem(q, q, window=1, keep_first=1, num_channels=1)
        >>> dsfjax.materialize(s)[0].tolist()
        [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.5, 0.0, 0.5]]

        Four heads that share one key and one value of two channels (multi-query attention):

        >>> q, k = jnp.zeros((3, 4, 2)), jnp.zeros((3, 1, 2))
        >>> s = dsfjax.KernelSystem(q, k, num_channels=2, value_heads=1)
        >>> s.token_width, s.output_width, s.slot_size
        (2, 8, 4)
    """

    q: Array
    k: Array
    W: Array | None = constant(default=None)
    reset: Array | None = None
    transition: Transition | None = None
    log_decay: Array | None = None
    sink: Array | None = constant(default=None)
    num_channels: int = static(kw_only=True)
    window: int | None = static(kw_only=True, default=None)
    soft_cap: float | None = static(kw_only=True, default=None)
    keep_first: int = static(kw_only=True, default=0)
    value_heads: int | None = static(kw_only=True, default=None)

    # Decays and moves add up over the whole past, which a decay near 1 rounded to 8 bits would not
    # reach. With q the sums are wide where nothing decays, too.
    multiplied: ClassVar[tuple[str, ...]] = ("q", "k", "W")
    accumulated: ClassVar[tuple[str, ...]] = ("q", "transition", "log_decay", "sink")
    """What a `Precision` rounds, and what it keeps in the dtype of the sums."""

    def __post_init__(self) -> None:
        for name in ("q", "k", "W", "log_decay", "sink"):
            if (x := getattr(self, name)) is not None:
                dtypes = (self.q.dtype, self.k.dtype)
                object.__setattr__(self, name, real_numbers("KernelSystem", name, x, *dtypes))
        expect(self.q.ndim == 3, self, "q", "(L, H, m)", self.q.shape)
        length, heads, m = self.q.shape
        ok = self.k.ndim == 3 and self.k.shape[::2] == (length, m) and heads % self.k.shape[1] == 0
        expect(ok, self, "k", f"({length}, G, {m}) with G dividing {heads}", self.k.shape)
        if self.value_heads is not None and (self.value_heads < 1 or heads % self.value_heads):
            raise ValueError(
                f"KernelSystem: expected value_heads to divide the {heads} heads of q, got "
                f"{self.value_heads}. None stands for values of every head."
            )
        if self.W is not None:
            width = self.value_width
            expect(
                self.W.ndim == 2 and self.W.shape[0] == width,
                self,
                "W (no time axis)",
                f"({width}, d)",
                self.W.shape,
            )
        if self.reset is not None:
            ok = self.reset.shape == (length,) and self.reset.dtype == jnp.bool_
            got = f"{self.reset.dtype}{list(self.reset.shape)}"
            expect(ok, self, "reset", f"({length},) and dtype bool", got)
        if self.sink is not None:
            got = self.sink.shape
            expect(got == (heads,), self, "sink (no time axis)", f"({heads},)", got)
        if self.transition is not None:
            _check_transition(self, length, heads, m)
        if self.log_decay is not None:
            got = self.log_decay.shape
            expect(got in ((1, heads), (length, heads)), self, "log_decay", f"(T, {heads})", got)
        if self.window is not None and self.window < 1:
            raise ValueError(
                f"KernelSystem: expected a window of at least 1 step, got {self.window}. A query "
                "sees itself; None stands for the whole past."
            )
        if self.keep_first < 0:
            raise ValueError(
                f"KernelSystem: expected keep_first of at least 0 steps, got {self.keep_first}. 0 "
                "keeps none but those of the window."
            )
        if self.soft_cap is not None and not self.soft_cap > 0:
            raise ValueError(
                f"KernelSystem: expected soft_cap above 0, got {self.soft_cap}. None stands for no "
                "cap."
            )

    @property
    def length(self) -> int:
        """Number of steps L."""
        return self.q.shape[0]

    @property
    def num_heads(self) -> int:
        """H, the number of query heads."""
        return self.q.shape[1]

    @property
    def value_shape(self) -> tuple[int, int]:
        """(V, p), the values of one step."""
        heads = self.num_heads if self.value_heads is None else self.value_heads
        return heads, self.num_channels

    @property
    def value_width(self) -> int:
        """V·p, the numbers of the values of one step."""
        heads, channels = self.value_shape
        return heads * channels

    @property
    def token_width(self) -> int:
        """d, the width of the tokens u."""
        return self.value_width if self.W is None else self.W.shape[1]

    @property
    def output_width(self) -> int:
        """d_out = H·p."""
        return self.num_heads * self.num_channels

    @property
    def dtype(self) -> np.dtype:
        """Dtype of scores and sums: that of the widest array, at least float32."""
        return state_dtype(*(x.dtype for x in jax.tree.leaves(self)))

    @property
    def real_dtype(self) -> np.dtype:
        """The same: a kernel system is real."""
        return self.dtype

    @property
    def slot_size(self) -> int:
        """G·m + V·p (and H with a decay): the numbers that the cache keeps of one step."""
        decays = 0 if self.log_decay is None and not isinstance(self.transition, Scalar) else 1
        return self.key_heads * self.k.shape[2] + self.value_width + decays * self.num_heads

    @property
    def most_slots(self) -> int | None:
        """Slots that the cache holds at most, the window and the first steps; None: no bound."""
        return None if self.window is None else self.window + self.keep_first

    def state_size(self, length: int) -> int:
        """Numbers in the cache after ``length`` tokens; with a window they stop growing."""
        most = self.most_slots
        return self.slot_size * (length if most is None else min(length, most))

    @property
    def weight_log_decay(self) -> Array | None:
        """Logarithm of the decay of the weights per step, (T, H) with T steps or 1, or None."""
        return self.transition.log_a if isinstance(self.transition, Scalar) else self.log_decay

    @property
    def key_transition(self) -> Transition | None:
        """The transition that moves the keys, or None."""
        return None if isinstance(self.transition, Scalar) else self.transition

    @property
    def key_heads(self) -> int:
        """Heads of the keys in the cache: H if a transition moves them differently, else G."""
        A, groups = self.key_transition, self.k.shape[1]
        return groups if A is None else _heads_of(A, groups, self.num_heads, self.k.shape[2])

    def map_of_heads(self) -> Array | None:
        """W with the rows of every head, (H·p, d), also where heads share values.

        None where the token is made of the values of all heads. For those who look at heads one by
        one: the engines never form it.
        """
        heads, channels = self.value_shape
        if self.W is None and heads == self.num_heads:
            return None
        W = jnp.eye(self.value_width, dtype=self.q.dtype) if self.W is None else self.W
        W = to_heads(W.reshape(heads, channels, -1), self.num_heads, axis=0)
        return W.reshape(self.output_width, -1)

    def expect_plain(self, owner: str, *, with_decays: bool = False) -> None:
        """Raise `ValueError` unless this is the exponential kernel e^{qᵀk} over the whole past.

        Args:
            owner: Who needs that, for the message.
            with_decays: Whether decays of the weights are allowed.
        """
        extras = {"sink": self.sink, "window": self.window, "soft_cap": self.soft_cap}
        decays = "transition" if self.log_decay is None else "log_decay"
        extras["transition"] = self.key_transition
        if not with_decays and self.weight_log_decay is not None:
            extras[decays] = self.weight_log_decay
        found = [name for name, x in extras.items() if x is not None]
        if found:
            raise ValueError(
                f"{owner}: expected the kernel exp(qᵀk) over the whole past, got a KernelSystem "
                f"with {', '.join(found)}. Look at dsfjax.materialize(system), or leave them out "
                "with dataclasses.replace."
            )

    def cache(self, capacity: int, dtype: DTypeLike | None = None) -> KVCache:
        """The empty state for a decoding loop, written in place.

        Args:
            capacity: Slots: the number of steps to come. With a window, more than
                ``window + keep_first`` slots are never needed, and no more are allocated.
            dtype: Of keys and values, by default that of the keys.
        """
        if self.most_slots is not None:
            capacity = min(capacity, self.most_slots)
        dtype = self.k.dtype if dtype is None else dtype
        shapes = (
            (capacity, self.key_heads, self.k.shape[2]),
            (capacity, *self.value_shape),
        )
        k, v = (jnp.zeros(shape, dtype) for shape in shapes)
        zero = jnp.zeros((), jnp.int32)
        if self.weight_log_decay is None:
            return KVCache(k, v, zero, zero)
        return KVCache(k, v, zero, zero, jnp.zeros((capacity, self.num_heads), state_dtype(dtype)))


def _check_transition(system: KernelSystem, length: int, heads: int, m: int) -> None:
    """Raise unless the transition of a kernel is one that the engines run."""
    A = system.transition
    assert A is not None
    if isinstance(A, Scalar):
        if not A.is_positive:
            raise TypeError(
                "KernelSystem: expected a Scalar transition, a decay of the weights, to be real "
                f"and without signs, got {A}. A Diagonal moves the keys and may have either."
            )
        if system.log_decay is not None:
            raise ValueError(
                "KernelSystem: expected one decay of the weights, got a Scalar transition and "
                "log_decay. Add their logarithms."
            )
        A.check((heads, m, 1))
    elif jnp.issubdtype(A.dtype, jnp.complexfloating):
        raise TypeError(
            f"KernelSystem: expected a real transition, got {A}. Keys and queries are real; turn "
            "pairs of features with a Dense transition."
        )
    else:
        _heads_of(A, system.k.shape[1], heads, m)
    sizes = {x.shape[0] for x in time_leaves(A)}
    expect(sizes <= {1, length}, A, "time axes of the transition", f"{length} or 1", sizes)


def _heads_of(A: Transition, groups: int, heads: int, m: int) -> int:
    """The number of heads over which a transition of keys differs: that of the groups, or H."""
    # A transition with one head per group moves the keys of a group alike: the cache then holds one
    # key for all of its query heads.
    if groups != heads:
        try:
            A.check((groups, m, 1))
        except ValueError:
            pass  # then it must fit all heads, or say why it does not
        else:
            return groups
    A.check((heads, m, 1))
    return heads


class KVCache(NamedTuple):
    """The state of a `KernelSystem`: keys and values of the past.

    With a window it holds the first ``keep_first`` steps of the last document and then the last
    ``window`` steps, or as many as there are.

    Attributes:
        k: Keys (S, G, m), moved to the last step if there is a transition that moves them, and
            then (S, H, m) if it differs between the heads of a group.
        v: Values (S, V, p).
        first: Integer scalar, the first slot that is visible; a reset moves it.
        length: None if all S slots are in use: each step then appends a slot. An integer array if
            the cache was allocated with spare slots (`KernelSystem.cache`): steps then write in
            place, with constant shapes, as a compiled decoding loop needs.
        log_weight: Logarithm of the decay since each slot was written, (S, H); None without decays.
    """

    k: Array
    v: Array
    first: Array
    length: Array | None = None
    log_weight: Array | None = None
