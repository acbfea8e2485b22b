r"""Sequences whose steps are cut over devices, inside `jax.shard_map`.

A device that has a part of a sequence computes everything that belongs to a single step by itself.
`Shards` is what it learns of the other parts: which steps it has, rows before its own, sums over
all. `scan_shards` is the recurrence, of which the devices exchange summaries alone.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Int, Shaped

from dsfjax._util.varying import vary_alike, zeros_as
from dsfjax.core.dtypes import state_dtype
from dsfjax.core.kernel import KernelSystem, KVCache
from dsfjax.core.policy import DEFAULT, Precision
from dsfjax.core.system import System
from dsfjax.engines import attention
from dsfjax.engines.recurrence import check_tokens
from dsfjax.engines.scan import initial_state, scan
from dsfjax.engines.summary import summarize

T = TypeVar("T")


class Shards(NamedTuple):
    """The devices that a sequence is cut over, each with as many of its steps.

    Without an axis the sequence is whole: one part, of which nothing has to be exchanged.

    Attributes:
        axis_name: Axis of the mesh along which time is cut, or None.
        descending: Whether the first device has the last part, as of a sequence that is read from
            its end.
    """

    axis_name: str | None = None
    descending: bool = False

    @property
    def count(self) -> int:
        """Number of parts."""
        return 1 if self.axis_name is None else jax.lax.axis_size(self.axis_name)

    @property
    def index(self) -> Array | int:
        """The number of this device's part, in the order in which the sequence is read."""
        if self.axis_name is None:
            return 0
        index = jax.lax.axis_index(self.axis_name)
        return self.count - 1 - index if self.descending else index

    def reversed(self) -> Shards:
        """The same devices, of a sequence that is read from its other end."""
        return self._replace(descending=not self.descending)

    def steps(self, length: int) -> Int[Array, " L"]:
        """The numbers within the whole sequence of this device's ``length`` steps."""
        return self.index * length + jnp.arange(length, dtype=jnp.int32)

    def place(self, length: int, reset: Bool[Array, " L"] | None = None) -> Int[Array, ""]:
        """The place in its document of this device's first step, did no document start there.

        Args:
            length: This device's steps.
            reset: True where a document starts, of these steps.
        """
        index = self.steps(length)
        if self.axis_name is None or reset is None:
            return index[0]
        # The last document that starts on a device before this one reaches this one's steps.
        last = self.largest_before(jnp.max(jnp.where(reset, index, -1)), -1)
        return jnp.where(last < 0, index[0], index[0] - last)

    def own(self, whole: Shaped[Array, "S ..."]) -> Shaped[Array, "L ..."]:
        """This device's rows of an array that every device has.

        Raises:
            ValueError: While tracing, if the devices do not divide the rows.
        """
        if self.axis_name is None:
            return whole
        size, left = divmod(whole.shape[0], self.count)
        if left:
            divisors = [n for n in range(1, self.count) if whole.shape[0] % n == 0]
            raise ValueError(
                f"axis {self.axis_name!r}: expected a length that its {self.count} devices divide, "
                f"got {whole.shape[0]}; cut it over {divisors[-1]}."
            )
        return jax.lax.dynamic_slice_in_dim(whole, self.index * size, size)

    def gathered(self, x: Shaped[Array, ...]) -> Shaped[Array, "S ..."]:
        """What each device has, in the order of the parts, on all devices."""
        if self.axis_name is None:
            return x[None]
        every = jax.lax.all_gather(x, self.axis_name)
        return jnp.flip(every, 0) if self.descending else every

    def total(self, parts: T) -> T:
        """The sums of what each device has, on all devices."""
        return parts if self.axis_name is None else jax.lax.psum(parts, self.axis_name)

    def largest_before(self, x: Int[Array, ""], nothing: int) -> Int[Array, ""]:
        """The largest number that a part before this one has; ``nothing`` for the first."""
        earlier = jnp.arange(self.count) < self.index
        return jnp.max(jnp.where(earlier, self.gathered(x), nothing))

    def halo(self, x: Shaped[Array, "L ..."], width: int) -> Shaped[Array, "W ..."]:
        """The ``width`` rows before this device's ``x``; zeros where there are none."""
        length, pieces = x.shape[0], []
        # Parts may be shorter than what is looked back: then rows come from several.
        for back in range(min(-(-width // length), self.count - 1), 0, -1):
            rows = x[-(width - (back - 1) * length) :]
            to = -back if self.descending else back
            pairs = [(i, (i + to) % self.count) for i in range(self.count)]
            rows = jax.lax.ppermute(rows, self.axis_name, pairs)
            pieces.append(jnp.where(self.index >= back, rows, jnp.zeros_like(rows)))
        missing = width - sum(len(piece) for piece in pieces)
        return jnp.concatenate([zeros_as(x, (missing, *x.shape[1:])), *pieces])

    def row(self, x: Shaped[Array, "*b L d"], step: Int[Array, ""] | int) -> Shaped[Array, "*b d"]:
        """The row of one step of the whole sequence, on all devices; step −1 is the last."""
        if self.axis_name is None:
            return jnp.take(x, step, axis=-2)
        length = x.shape[-2]
        local = step % (self.count * length) - self.index * length
        found = jnp.take(x, jnp.clip(local, 0, length - 1), axis=-2)
        return self.total(jnp.where((local >= 0) & (local < length), found, 0))

    def rows(self, x: Shaped[Array, "L d"], steps: Int[Array, " q"]) -> Shaped[Array, "r d"]:
        """The rows of some steps of the whole sequence, of which each device gets its `share`.

        Numerics:
            The devices exchange q rows, of which each keeps its share.
        """
        if self.axis_name is None:
            return x[steps]
        length = x.shape[0]
        local = self._filled(steps) - self.index * length
        here = (local >= 0) & (local < length)
        found = jnp.where(here[:, None], x[jnp.clip(local, 0, length - 1)], 0)
        parts = found.reshape(self.count, -1, x.shape[1])
        parts = jnp.flip(parts, 0) if self.descending else parts
        return jax.lax.psum_scatter(parts, self.axis_name)

    def share(self, x: Shaped[Array, "q ..."]) -> Shaped[Array, "r ..."]:
        """This device's share of rows that every device has, however many there are.

        All shares have one size: the last rows are repeated, and `counts` says which of a share
        are not such repetitions.
        """
        return self.own(self._filled(x))

    def counts(self, number: int) -> Bool[Array, " r"]:
        """Which rows of this device's share of ``number`` rows do not only fill it up."""
        return self.own(jnp.arange(number + self._missing(number)) < number)

    def _missing(self, number: int) -> int:
        return -number % self.count

    def _filled(self, x: Array) -> Array:
        last = jnp.repeat(x[-1:], self._missing(x.shape[0]), axis=0)
        return jnp.concatenate([x, last]) if last.shape[0] else x


WHOLE = Shards()
"""A sequence that is not cut."""


def scan_shards(
    system: System | KernelSystem,
    u: Shaped[Array, "L d"],
    h0: Array | None = None,
    *,
    axis_name: str,
    method: str = "auto",
    descending: bool = False,
    precision: Precision | None = None,
) -> tuple[Array, Array | KVCache]:
    """Scan a sequence whose steps are cut over devices, inside `jax.shard_map`.

    Every device summarises its steps, the summaries (and nothing of length L) are exchanged, each
    device finds the state before its steps and scans them. A kernel has no summary: its devices
    exchange keys and values.

    Args:
        system: The system of this device's steps, equally many on all devices.
        u: This device's tokens (L / devices, d), in the order of the axis.
        h0: State before the whole sequence, the same on all devices; zero by default. A kernel
            system starts without a past.
        axis_name: Axis of the mesh along which time is cut.
        method: Of `scan`.
        descending: Whether the first device has the last steps: of a sequence that was flipped on
            every device, to be read from its end.
        precision: Of `scan`.

    Returns:
        ``(y, h_last)``: outputs of this device's steps, and the state after the whole sequence, the
        same on all devices. Values and gradients are those of `scan` on the whole sequence.

    Raises:
        ValueError: As `scan`; for a kernel system whose keys move, or that is given a past.

    Numerics:
        Twice the work of `scan` per step (the summary, then the outputs), on L / devices steps.
        One all-gather of P and Q per device. Of a kernel system every device holds all keys and
        values, O(L), and computes the scores of its own queries.

    Example:
        >>> import dsfjax
        >>> from functools import partial
        >>> from jax.sharding import Mesh, PartitionSpec as Spec
        >>> A = dsfjax.Scalar(jnp.log(jnp.array([[0.5]])))
        >>> ema = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 1))
        >>> mesh = Mesh(jax.devices()[:1], ("time",))
        >>> run = partial(scan_shards, ema, axis_name="time")
        >>> specs = {"in_specs": Spec("time"), "out_specs": (Spec("time"), Spec())}
        >>> y, h = jax.shard_map(run, mesh=mesh, **specs)(jnp.ones((4, 1)))
        >>> y[:, 0].tolist()
        [1.0, 1.5, 1.75, 1.875]
    """
    shards = Shards(axis_name, descending)
    if isinstance(system, System) and jnp.ndim(u) and system.length == shards.count * u.shape[0]:
        # A system that was cut with its tokens still says the length of the whole.
        system = dataclasses.replace(system, length=u.shape[0])
    u = check_tokens("scan_shards", system, u)
    system, u = (DEFAULT if precision is None else precision).cast(system, u)
    run = partial(scan, method=method, precision=precision)
    if isinstance(system, KernelSystem):
        y, h = run(system, u, _past(shards, system, u, h0))
    else:
        h0 = initial_state("scan_shards", system, u, h0)
        mine = summarize(system, u, method=method, precision=precision)
        every, h0 = vary_alike((jax.tree.map(shards.gathered, mine), h0))
        _, before = jax.lax.scan(lambda h, part: (part.apply(h), h), h0, every)
        y, h = run(system, u, before[shards.index])
    is_last = shards.index == shards.count - 1
    return y, shards.total(jax.tree.map(lambda x: jnp.where(is_last, x, 0), h))


def _past(shards: Shards, system: KernelSystem, u: Array, h0: object) -> KVCache:
    """What the steps before this device's have written, in a cache with room for all others."""
    if system.key_transition is not None:
        raise ValueError(
            "scan_shards: expected a KernelSystem whose keys stay where they are, got one with the "
            f"transition {type(system.key_transition).__name__} between key and query. It cannot "
            "be cut over devices; leave the sequence whole and divide the batch instead."
        )
    if h0 is not None:
        raise ValueError(
            "scan_shards: expected h0=None for a KernelSystem, whose past has another length on "
            f"every device, got {type(h0).__name__}."
        )

    def joined(x: Array) -> Array:
        every = shards.gathered(x)
        return every.reshape(-1, *every.shape[2:])

    length = u.shape[0]
    first = jnp.zeros((), jnp.int32)
    if system.reset is not None:
        slots = jnp.where(system.reset, shards.steps(length), 0)
        first = shards.largest_before(slots.max(), 0)
    # The slots from this device's steps on are written again or seen by no query.
    k, v = joined(system.k), joined(attention.values(system, u))
    begin, log_weight = jnp.asarray(shards.index * length, jnp.int32), None
    if (decays := attention.decays_to_the_end(system, length, state_dtype(v.dtype))) is not None:
        each, total = decays
        # A slot of part j decays to the end of its part and over the parts between j and this one.
        part = jnp.arange(shards.count)
        between = (part[:, None] < part) & (part < shards.index)
        after = jnp.where(between[:, :, None], shards.gathered(total), 0).sum(axis=1)
        log_weight = shards.gathered(each) + after[:, None]
        log_weight = log_weight.reshape(-1, log_weight.shape[-1])
    return KVCache(k, v, first, begin, log_weight)
