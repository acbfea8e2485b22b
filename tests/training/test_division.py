"""A batch divided over devices is the batch; a named axis of `jax.vmap` stands for the devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax.nn import ModelConfig
from dsfjax.tasks.mqar import MQARConfig
from dsfjax.training import TrainConfig
from dsfjax.training.block import start, train_block
from dsfjax.training.devices import layout
from dsfjax.training.program import data_of, members
from dsfjax.training.runs import program_of

CONFIG = TrainConfig(
    MQARConfig(vocab_size=32, seq_len=16, num_kv_pairs=2),
    ModelConfig("linear_attention", vocab_size=32, d_model=8, num_layers=1, embed_dropout=0.3),
    batch_size=6,
    steps=4,
    eval_every=2,
    eval_examples=7,  # not a multiple of the devices
    seeds=(3,),
    learning_rates=(1e-2,),
    train_examples=10,  # the second batch is filled up
)


@pytest.mark.parametrize(
    ("devices", "parts"),
    [
        pytest.param(2, 1, marks=pytest.mark.slow),
        (3, 1),
        pytest.param(3, 2, marks=pytest.mark.slow),
    ],
)
def test_a_block_is_that_of_one_device(devices: int, parts: int) -> None:
    """States and metrics after two steps with dropout and after the evaluation."""
    program, which = program_of(CONFIG), members(CONFIG.members)
    in_parts = program_of(dataclasses.replace(CONFIG, accumulate=parts))
    carry = jax.jit(functools.partial(start, program))(which)
    total, data = jnp.int32(CONFIG.steps), data_of(program)
    alone = jax.jit(lambda: train_block(program, data, carry, which, total))()

    def part() -> object:
        return train_block(in_parts, data, carry, which, total, axis_name="examples")

    divided = jax.jit(jax.vmap(part, axis_name="examples", axis_size=devices, in_axes=None))()
    for one, each in zip(jax.tree.leaves(alone), jax.tree.leaves(divided), strict=True):
        for found in _numbers(each):  # every device has all of the state
            np.testing.assert_allclose(found, _numbers(one), rtol=1e-10, atol=1e-13)


def _numbers(x: jax.Array) -> jax.Array:
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


@pytest.mark.parametrize(
    ("num_members", "num_devices", "batch_size", "groups", "share"),
    [(1, 4, 8, 1, 4), (1, 4, 6, 1, 3), (2, 4, 8, 2, 2), (3, 8, 4, 3, 2), (4, 4, 8, 4, 1)],
)
def test_devices_without_a_member_of_their_own_divide_batches(
    num_members: int, num_devices: int, batch_size: int, groups: int, share: int
) -> None:
    where = layout(num_members, jax.devices()[:1] * num_devices, batch_size=batch_size)
    assert (where.num_groups, where.share, len(where.devices)) == (groups, share, groups * share)
    assert where.slice_size % groups == 0
