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
from dsfjax.training.objective import query_loss
from dsfjax.training.program import data_of, members
from dsfjax.training.runs import program_of
from tests.training.toy import echo_batch

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
    ("devices", "parts", "shards"),
    [
        pytest.param(2, 1, 1, marks=pytest.mark.slow),
        pytest.param(3, 1, 1, marks=pytest.mark.slow),
        pytest.param(3, 2, 1, marks=pytest.mark.slow),
        pytest.param(3, 1, 2, marks=pytest.mark.slow),
        pytest.param(3, 2, 4, marks=pytest.mark.slow),  # more devices than queries
    ],
)
def test_a_block_is_that_of_one_device(devices: int, parts: int, shards: int) -> None:
    """States and metrics after two steps with dropout and after the evaluation."""
    program, which = program_of(CONFIG), members(CONFIG.members)
    in_parts = program_of(dataclasses.replace(CONFIG, accumulate=parts))
    if shards > 1:
        in_parts = dataclasses.replace(in_parts, model=in_parts.model.over("steps"))
    carry = jax.jit(functools.partial(start, program))(which)
    total, data = jnp.int32(CONFIG.steps), data_of(program)
    alone = jax.jit(lambda: train_block(program, data, carry, which, total))()

    def part() -> object:
        return train_block(in_parts, data, carry, which, total, axis_name="examples")

    over = jax.vmap(part, axis_name="examples", axis_size=devices, in_axes=None)
    divided = jax.jit(jax.vmap(over, axis_name="steps", axis_size=shards, in_axes=None))()
    for one, each in zip(jax.tree.leaves(alone), jax.tree.leaves(divided), strict=True):
        one, each = _numbers(one), _numbers(each)
        for found in each.reshape(-1, *one.shape):  # every device has all of the state
            np.testing.assert_allclose(found, one, rtol=1e-10, atol=1e-13)


def _numbers(x: jax.Array) -> jax.Array:
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


@pytest.mark.parametrize(
    ("num_members", "num_devices", "batch_size", "shards", "groups", "share"),
    [
        (1, 4, 8, 1, 1, 4),
        (1, 4, 6, 1, 1, 3),
        (2, 4, 8, 1, 2, 2),
        (3, 8, 4, 1, 3, 2),
        (4, 4, 8, 1, 4, 1),
        (1, 8, 8, 4, 1, 2),
        (4, 8, 8, 3, 2, 1),
    ],
)
def test_devices_without_a_member_of_their_own_divide_batches(
    num_members: int, num_devices: int, batch_size: int, shards: int, groups: int, share: int
) -> None:
    devices = jax.devices()[:1] * num_devices
    where = layout(num_members, devices, batch_size=batch_size, shards=shards)
    assert (where.num_groups, where.share) == (groups, share)
    assert len(where.devices) == groups * share * shards
    assert where.slice_size % groups == 0


def test_sequences_that_cannot_be_cut() -> None:
    with pytest.raises(ValueError, match="cut over 1 to 2 devices, got 3"):
        layout(1, jax.devices()[:1] * 2, shards=3)
    cut, batch = program_of(CONFIG).model.over("steps"), echo_batch(0, 2, length=16)
    params = jax.eval_shape(cut.init, jax.random.key(0))
    loss = jax.vmap(lambda _: query_loss(cut, params, batch), axis_name="steps")
    with pytest.raises(ValueError, match="a length that its 3 devices divide, got 16; cut it over"):
        jax.eval_shape(loss, jnp.arange(3))
