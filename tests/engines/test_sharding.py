"""shard_map over a batch and over time, on four virtual devices.

A process of its own, as the number of devices is fixed: run as a program this file does the work,
and prints one line per deviation.
"""

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

NAMES = ("scalar_summed", "diagonal_factored", "complex_per_state", "low_rank", "dense")
DEVICES, BATCH = 4, 8


@pytest.mark.slow
def test_shard_map():
    """Values and gradients are those of one device; over the batch without communication."""
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={DEVICES}",
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{DEVICES} devices\n"


@pytest.mark.parametrize("name", ["scalar", "low_rank", "diagonal_factored"])
def test_types_within_shard_map(name: str) -> None:
    """Tokens differ between devices and systems do not: every loop carries arrays of one type.

    A mesh of one device has the same types as one of many.
    """
    from dsfjax import scan
    from tests.engine_runs import inputs

    mesh, P = jax.make_mesh((1,), ("batch",), axis_types=(AxisType.Auto,)), PartitionSpec
    system, u, _ = inputs(name, 65)
    tokens = jnp.stack([u, 2 * u])

    def loss(tokens: jax.Array) -> jax.Array:
        y, h = jax.vmap(lambda u: scan(system, u, method="chunked"))(tokens)
        return (y * y).sum() + (h.real * h.real).sum()

    def of_device(tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(tokens)
        return jax.lax.psum(value, "batch"), gradient

    split = jax.shard_map(of_device, mesh=mesh, in_specs=P("batch"), out_specs=(P(), P("batch")))
    expected = jax.jit(jax.value_and_grad(loss))(tokens)
    for found, value in zip(jax.jit(split)(tokens), expected, strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-12, atol=1e-12)


def main() -> None:
    from dsfjax import scan
    from tests import systems_zoo as zoo
    from tests.engine_checks import cotangents, cut_length, pull_back
    from tests.engine_runs import methods

    print(jax.device_count(), "devices")
    mesh = jax.make_mesh((DEVICES,), ("batch",))
    spec = PartitionSpec("batch")

    def compare(what: str, run: Callable[..., Any], *stacked: Any) -> None:
        """The batch over the devices against the batch on one."""
        sharded = jax.shard_map(run, mesh=mesh, in_specs=spec, out_specs=spec)
        spread = jax.device_put(stacked, NamedSharding(mesh, spec))
        try:
            compiled = jax.jit(sharded).lower(*spread).compile()
        except (TypeError, ValueError) as error:
            print(what, "raises", str(error)[:300])
            return
        if re.search("all-|collective", compiled.as_text() or ""):
            print(what, "communicates")
        got, expected = compiled(*spread), jax.jit(run)(*stacked)
        for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            if not np.max(np.abs(x - y), initial=0) <= 1e-11 * np.max(np.abs(y), initial=1e-300):
                print(what, x.shape, "differs")

    for name in NAMES:
        length = cut_length(name)
        examples = []
        for seed in range(BATCH):
            system = zoo.system(name, length, seed)
            example = system, zoo.tokens(system, length, seed), zoo.state(system, seed)
            examples.append((*example, cotangents(*example)))
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *examples)
        for method in methods(examples[0][0]):
            run = jax.vmap(partial(pull_back, method=method))
            compare(f"{name} {method}", run, *stacked)
        from_zero = jax.vmap(scan)
        compare(f"{name} from a zero state", from_zero, *stacked[:2])

        compare_over_time(name)
    compare_weights()


def compare_weights() -> None:
    """The gradient of weights that all devices share, summed over the sequences of each."""
    from dsfjax.core.rows import projected
    from tests.draw import Draw

    g = Draw("weights", BATCH, 0)
    x, W, dy = g.normal(BATCH, 8, 3), g.normal(3, 5), g.normal(BATCH, 8, 5)
    expected = dy @ W.T, jnp.einsum("bld,ble->de", x, dy)

    def pulled(x: Any, W: Any, dy: Any) -> Any:
        return jax.vjp(jax.vmap(projected, (0, None)), x, W)[1](dy)

    for axis_type in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((DEVICES,), ("d",), axis_types=(axis_type,))
        for cut in (PartitionSpec("d"), PartitionSpec(None, "d")):
            specs = cut, PartitionSpec(), cut
            local = jax.shard_map(pulled, mesh=mesh, in_specs=specs, out_specs=specs[:2])
            spread = jax.device_put((x, W, dy), tuple(NamedSharding(mesh, p) for p in specs))
            for run in (pulled, local):
                found = jax.jit(run)(*spread)
                if not all(map(np.allclose, found, expected)):
                    print("weights", axis_type, cut, "differ")


def compare_over_time(name: str) -> None:
    """`scan_shards` of a sequence cut over the devices against `scan` of the whole."""
    from dsfjax import scan, scan_shards
    from tests import systems_zoo as zoo

    length = 8 * DEVICES
    mesh = jax.make_mesh((DEVICES,), ("time",))
    cut, whole = PartitionSpec("time"), PartitionSpec()
    complete = zoo.system(name, length)
    for system in (complete, dataclasses.replace(complete, reset=None)):
        inputs = system, zoo.tokens(system, length), zoo.state(system)
        over = jax.tree.map(lambda x: cut if x.shape[0] == length else whole, inputs[:2])
        specs = (*over, whole)
        sharded = jax.shard_map(
            partial(scan_shards, axis_name="time"),
            mesh=mesh,
            in_specs=specs,
            out_specs=(cut, whole),
        )
        places = jax.tree.map(partial(NamedSharding, mesh), specs, is_leaf=_is_spec)
        got = jax.jit(partial(_outputs_and_gradients, sharded))(*jax.device_put(inputs, places))
        expected = jax.jit(partial(_outputs_and_gradients, scan))(*inputs)
        for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            if not np.max(np.abs(x - y), initial=0) <= 1e-13 * np.max(np.abs(y), initial=1e-300):
                print(name, "over time", x.shape, "differs")


def _is_spec(x: Any) -> bool:
    return isinstance(x, PartitionSpec)


def _outputs_and_gradients(of: Callable[..., Any], system: Any, u: Any, h0: Any) -> Any:
    def loss(floats: Any) -> Any:
        outs = of(dataclasses.replace(floats[0], reset=system.reset), *floats[1:])
        weighted = (x * np.cos(np.arange(x.size)).reshape(x.shape) for x in outs)
        return sum(jnp.sum(x).real for x in weighted), outs

    return jax.grad(loss, has_aux=True)((dataclasses.replace(system, reset=None), u, h0))


if __name__ == "__main__":
    main()
