"""What must hold on eight devices; run by ``test_devices.py`` in a process that has them."""

import dataclasses
import functools
import json
import tempfile
import unittest
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from dsfjax import scan, systems
from dsfjax.training import (
    Listener,
    OptimizerConfig,
    Resources,
    init_state,
    load,
    optimizer,
    train,
    train_step,
)
from dsfjax.training.block import start, train_block
from dsfjax.training.config import grid
from dsfjax.training.devices import Layout, layout
from dsfjax.training.loop import Block, run
from dsfjax.training.program import Program, data_of, members
from dsfjax.training.runs import program_of
from tests.training.small_config import CONFIG
from tests.training.toy import TOY, Echo, echo_batch

PROGRAM = Program(TOY, Echo(), OptimizerConfig(), batch_size=4, block_steps=1, eval_examples=8)
WHICH = members(
    grid(learning_rates=[1e-3, 1e-2], seeds=range(6), weight_decays=[0.0, 0.1], dropouts=[0.1])
)


def final(where: Layout, steps: int, program: Program = PROGRAM) -> tuple[Block, Any]:
    *_, last = run(program, WHICH, steps, where=where)
    return last, last.carry().states.params


def distance(a: Any, b: Any) -> float:
    """Largest difference over largest entry, of the worst leaf."""
    return max(
        float(np.abs(np.asarray(x) - np.asarray(y)).max() / np.abs(np.asarray(y)).max())
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


class Sharded(unittest.TestCase):
    def test_there_are_eight(self) -> None:
        self.assertEqual(jax.device_count(), 8)

    def test_every_device_has_its_part(self) -> None:
        where = layout(24, jax.devices())
        self.assertEqual((where.slice_size, where.num_slices), (24, 1))
        placed = where.put(WHICH.seed, jax.sharding.PartitionSpec("members"))
        self.assertEqual({shard.data.shape for shard in placed.addressable_shards}, {(3,)})
        self.assertEqual(len(placed.addressable_shards), 8)

    def test_one_step_agrees_with_one_device(self) -> None:
        alone, expected = final(layout(24, jax.devices()[:1]), 1)
        for where in (
            layout(24, jax.devices(), width=3),
            layout(24, jax.devices()[:5], at_most=10),  # three slices, the last not full
        ):
            block, params = final(where, 1)
            self.assertLess(distance(params, expected), 1e-5)
            both = (jax.tree.leaves(each.metrics) for each in (block, alone))
            for found, own in zip(*both, strict=True):
                np.testing.assert_allclose(found, own, rtol=1e-5, atol=1e-6)

    def test_devices_of_a_member_divide_its_batches(self) -> None:
        config = dataclasses.replace(CONFIG, batch_size=8, seeds=(0,), learning_rates=(1e-2,))
        program, which = program_of(config), members(config.members)
        found = []
        for devices in (1, 8):
            where = layout(1, jax.devices()[:devices], batch_size=8)
            self.assertEqual(where.share, devices)
            *_, last = run(program, which, 2 * config.eval_every, where=where)
            found.append((last.carry().states.params, last.metrics.held_out["loss"]))
        self.assertLess(distance(*found), 1e-4)

    def test_repeats_bit_for_bit(self) -> None:
        program = dataclasses.replace(PROGRAM, block_steps=5)
        first, again = (final(layout(24, jax.devices(), at_most=8), 10, program) for _ in range(2))
        chex.assert_trees_all_equal(first[1], again[1])
        chex.assert_trees_all_equal(first[0].metrics, again[0].metrics)

    def test_pmap_of_the_block(self) -> None:
        own = jax.tree.map(lambda leaf: leaf[:16], WHICH)
        parts = jax.tree.map(lambda leaf: leaf.reshape(8, 2), own)
        steps = jnp.int32(1)
        carry = jax.pmap(functools.partial(start, PROGRAM))(parts)
        block = jax.pmap(
            functools.partial(train_block, PROGRAM, data_of(PROGRAM)), in_axes=(0, 0, None)
        )
        after, _ = block(carry, parts, steps)
        whole = functools.partial(train_block, PROGRAM, data_of(PROGRAM))
        expected, _ = jax.jit(whole)(start(PROGRAM, own), own, steps)
        flat = jax.tree.map(lambda leaf: leaf.reshape(16, *leaf.shape[2:]), after.states.params)
        self.assertLess(distance(flat, expected.states.params), 1e-5)

    def test_killed_run_resumes_bit_for_bit(self) -> None:
        config = dataclasses.replace(CONFIG, steps=8, checkpoint_every=5)

        class Kill(Listener):
            def evaluated(self, name: str, lines: list[dict[str, Any]]) -> None:
                if lines[0]["step"] == 6:
                    raise KeyboardInterrupt

        resources = Resources(num_devices=4, at_most=4)
        with tempfile.TemporaryDirectory() as name:
            whole, halves = Path(name, "whole"), Path(name, "halves")
            result = train(config, whole, resources=resources)
            with self.assertRaises(KeyboardInterrupt):
                train(config, halves, resources=resources, listener=Kill())
            resumed = train(config, halves, resources=resources)
            self.assertEqual((result["devices"], result["members_at_once"]), (4, 4))
            self.assertEqual(json.dumps(result["members"]), json.dumps(resumed["members"]))
            chex.assert_trees_all_equal(load(whole).params, load(halves).params)


class Variants(chex.TestCase, parameterized.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)  # type: ignore
    def test_scan(self) -> None:
        arch = systems.get("ssd", d_model=8, d_state=4, num_heads=2)
        params = arch.init(jax.random.key(0))
        u = jax.random.normal(jax.random.key(1), (9, 8))

        @self.variant
        def outputs(params: Any, u: jax.Array) -> jax.Array:
            return scan(arch.system(params, u), u)[0]

        # Before `outputs` of one device, the loop that the definition is.
        expected = scan(arch.system(params, u), u, method="sequential")[0]
        self.assertLess(distance(outputs(params, u), expected), 1e-5)

    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)  # type: ignore
    def test_train_step(self) -> None:
        adamw = optimizer.build(OptimizerConfig(schedule="constant"), 1e-2)
        batch, state = echo_batch(0, 4), init_state(TOY, adamw, jax.random.key(0))

        @self.variant
        def step(params: Any, batch: Any) -> Any:
            own = state._replace(params=params)
            after, metrics = train_step(own, batch, model=TOY, optimizer=adamw)
            return after.params, metrics

        params, metrics = step(state.params, batch)  # type: ignore[misc]
        after, expected = train_step(state, batch, model=TOY, optimizer=adamw)
        self.assertLess(distance(params, after.params), 1e-5)
        self.assertLess(distance(metrics, expected), 1e-5)
        self.assertGreater(distance(state.params, params), 1e-3)


if __name__ == "__main__":
    unittest.main()
