"""Where the members of a program are computed: on which devices, and how many at once.

The members are an axis that is cut over the devices (``jax.shard_map``), each of which computes its
part: as one ``jax.vmap`` on an accelerator, which a single member cannot fill; one member after
another on a CPU, which counts as a device per core, and whose products of matrices take up to twice
as long in batches. So on a CPU a training step takes the memory of one member. Where there are
several devices for every member, they divide the examples of its batches. A sequence that is too
long for one device is cut over the steps of several (`Layout.shards`).

Members that do not fit into memory at once are computed in *slices* of one size, so of one
compilation; a slice that is not full repeats the last member. How members are laid out changes
what they compute by rounding only.
"""

import contextlib
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

Device = Any
"""A ``jax.Device``, which is no name that a type checker takes."""

AXIS, EXAMPLES, STEPS = "members", "examples", "steps"
SPLIT, WHOLE = PartitionSpec(AXIS), PartitionSpec()


class Layout(NamedTuple):
    """How many members are computed at once, and on what.

    Attributes:
        num_members: Members of the program.
        slice_size: Members computed at once, a multiple of the number of groups.
        devices: The devices, each group of ``share`` with an equal part of a slice.
        width: Members of a device that are one ``jax.vmap``; the next follow when these are done.
        share: Devices that have the same members and divide the examples of a batch.
        quick: Compile with few optimisations: for a program that runs less long than it compiles.
        shards: Devices that have the same members and examples and divide the steps of a sequence.
    """

    num_members: int
    slice_size: int
    devices: tuple[Device, ...]
    width: int
    share: int = 1
    quick: bool = False
    shards: int = 1

    @property
    def num_groups(self) -> int:
        """How many groups of devices have members of their own."""
        return len(self.devices) // (self.share * self.shards)

    @property
    def examples(self) -> str | None:
        """Axis of the mesh that divides a batch, or None if it is not divided."""
        return EXAMPLES if self.share > 1 else None

    @property
    def num_slices(self) -> int:
        """How many slices there are; the last may be filled up by repetition."""
        return -(-self.num_members // self.slice_size)

    def indices(self) -> list[np.ndarray]:
        """The members of each slice, int (slice_size,); what fills the last one up comes last.

        Examples:
            >>> [index.tolist() for index in layout(3, jax.devices()[:1], at_most=2).indices()]
            [[0, 1], [2, 2]]
        """
        padded = np.minimum(np.arange(self.num_slices * self.slice_size), self.num_members - 1)
        return list(padded.reshape(self.num_slices, self.slice_size))

    def sharding(self, spec: PartitionSpec) -> NamedSharding:
        """``SPLIT`` or ``WHOLE`` on these devices."""
        return NamedSharding(self._mesh(), spec)

    def split(self, function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Any:
        """A function of a slice, of which each device computes its part.

        Args:
            function: What to compute of a device's members; they do not talk to each other.
            in_specs: ``SPLIT`` or ``WHOLE``, a prefix of the arguments.
            out_specs: The same for the results.

        Returns:
            A function of a whole slice.
        """
        # The check of what varies over members would ask every constant that a scan starts from
        # to be marked as varying.
        return jax.shard_map(
            function,
            mesh=self._mesh(),
            in_specs=in_specs,
            out_specs=out_specs,
            check_vma=False,
        )

    def put(self, tree: PyTree, spec: PartitionSpec) -> PyTree:
        """Arrays of a whole slice, in every process the same, as arrays on the devices.

        Args:
            tree: Arrays that NumPy can read.
            spec: ``SPLIT`` or ``WHOLE``.

        Returns:
            Arrays on the devices, of which each process holds its part.
        """

        def one(leaf: Any) -> jax.Array:
            host = np.asarray(leaf)
            return jax.make_array_from_callback(host.shape, self.sharding(spec), host.__getitem__)

        return jax.tree.map(one, tree)

    def _mesh(self) -> Mesh:
        devices = np.array(self.devices).reshape(-1, self.share, self.shards)
        return Mesh(devices, (AXIS, EXAMPLES, STEPS))


def layout(
    num_members: int,
    devices: Sequence[Device],
    *,
    at_most: int | None = None,
    width: int | None = None,
    batch_size: int = 1,
    quick: bool = False,
    shards: int = 1,
) -> Layout:
    """The layout with the fewest slices, and those as small as can be.

    Args:
        num_members: Members of the program.
        devices: The devices. Of those of a single process no more are used than there are members
            and parts of a batch for; of several processes all are, as each must take part.
        at_most: How many members may be computed at once, but always one per group of devices; None
            for all.
        width: Members of a device that are one ``jax.vmap``, a divisor of its part of a slice; None
            for one on a CPU, all on accelerators.
        batch_size: Examples of a batch, which devices that would have no member divide evenly.
        quick: Compile with few optimisations.
        shards: Devices that each sequence is cut over.

    Returns:
        The layout.

    Raises:
        ValueError: If ``at_most`` is not positive, ``width`` does not divide, or there are too few
            devices for ``shards``.

    Examples:
        >>> layout(10, jax.devices()[:1], at_most=4).slice_size
        4
        >>> layout(8, jax.devices()[:1], at_most=7).slice_size
        4
        >>> layout(1, jax.devices()[:1] * 4, batch_size=6).share
        3
        >>> layout(1, jax.devices()[:1] * 8, batch_size=6, shards=4).share
        2
    """
    if at_most is not None and at_most < 1:
        raise ValueError(f"expected at least one member at once, got {at_most}")
    used, share = tuple(devices), 1
    alone = len({device.process_index for device in used}) == 1
    if not 1 <= shards <= len(used) or (len(used) % shards and not alone):
        divide = "" if alone else " that divide them, as those of several processes all take part"
        raise ValueError(
            f"expected each sequence to be cut over 1 to {len(used)} devices{divide}, got {shards}"
        )
    groups = teams = len(used) // shards
    if alone:
        groups = min(teams, num_members)
        share = next(s for s in range(teams // groups, 0, -1) if batch_size % s == 0)
        used = used[: groups * share * shards]
    per_device = -(-num_members // groups)
    if at_most is not None:
        num_slices = -(-per_device // max(1, at_most // groups))
        per_device = -(-per_device // num_slices)
    if width is None:
        width = 1 if used[0].platform == "cpu" else per_device
    if width < 1 or per_device % width:
        raise ValueError(f"expected a width that divides {per_device} members, got {width}")
    return Layout(num_members, per_device * groups, used, width, share, quick, shards)


def reserve(num_devices: int | None) -> None:
    """Let the CPU count as several devices, which must be said before JAX is first used.

    Where JAX has been used, or has other devices, this changes nothing; whoever asks for more
    devices than there are is told then.

    Args:
        num_devices: How many, or None for as many as JAX makes of it.
    """
    if num_devices is not None:
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", num_devices)


def is_primary() -> bool:
    """Whether this process has the files; true where there is no other."""
    return jax.process_index() == 0


def agree(find: Callable[[], Any]) -> Any:
    """What the primary finds, in every process.

    Args:
        find: Called in the primary only; gives JSON data.

    Returns:
        What it gave.

    Raises:
        Exception: In the primary what ``find`` raised; a ``ValueError`` with its message in the
            others, which would else wait for it forever.

    Examples:
        >>> agree(lambda: {"step": 3})
        {'step': 3}
    """
    if jax.process_count() == 1:
        return find()
    found, error = {}, None
    if is_primary():
        try:
            found = {"value": find()}
        except Exception as caught:
            found, error = {"error": str(caught)}, caught
    text = np.frombuffer(json.dumps(found).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    # The others send nothing, in as many bytes.
    text = text if is_primary() else np.zeros(size, np.uint8)
    found = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(text)).tobytes())
    if error is not None:
        raise error
    if "error" in found:
        raise ValueError(found["error"])
    return found["value"]


def share(tree: PyTree | None, template: PyTree) -> PyTree:
    """The primary's arrays, in every process.

    Args:
        tree: NumPy arrays in the primary, anything elsewhere.
        template: Their shapes and dtypes.

    Returns:
        The arrays.
    """
    if jax.process_count() == 1:
        return tree
    if not is_primary():
        tree = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), template)
    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(tree))
