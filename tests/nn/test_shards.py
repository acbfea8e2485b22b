"""Models of sequences that are cut over devices, for which a named axis of `jax.vmap` stands."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import engines, nn, systems
from tests.architectures import CARRY_MORE
from tests.nn.small import config, perturbed, tokens
from tests.reference_loop import error

DEVICES, LENGTH = 4, 12
CLASSES = {"head": "classifier", "num_classes": 3}
RESET = jnp.arange(LENGTH) % 5 == 4  # documents start at the end of a part and within others


def both(own: nn.ModelConfig, around: nn.Surrounding | None = None, **given: Any) -> Any:
    """Outputs and gradient of a weighted sum of them, of a whole sequence and of its parts."""
    whole = nn.build(own, around)
    cut, ids = whole.over("steps"), given.pop("inputs", tokens(LENGTH))
    params = perturbed(whole)  # some low-rank gates start at zero, and have no gradient there

    def term(model: Any, params: Any, ids: Any, reset: Any) -> Any:
        """This device's term of the loss, and what it gives."""
        length = given.get("length")
        key = jax.random.key(1) if given.get("dropout") else None
        x = model.features(params, ids, reset=reset, length=length, key=key)
        y = model.head(params, x, length=length, reset=reset)
        index = jnp.arange(y.shape[0]) if model.pooled else model.shards.steps(y.shape[0])
        rows = y if y.ndim == 2 else y[:, None]
        # No plain sum over channels, which the last norm would make a constant.
        weighted = (jnp.cos(index[:, None] + 3 * jnp.arange(rows.shape[1])) * rows).sum()
        # All devices have the outputs of a pooled head: it counts once.
        return jnp.where(model.pooled & (model.shards.index > 0), 0, weighted), y

    def run(model: nn.Model) -> Any:
        return jax.value_and_grad(lambda *x: term(model, *x), has_aux=True)

    @jax.jit
    def compare(params: Any, ids: Any, reset: Any) -> Any:
        (_, y), gradient = run(whole)(params, ids, reset)
        parts = jax.tree.map(lambda x: x.reshape(DEVICES, -1, *x.shape[1:]), (ids, reset))
        mapped = jax.vmap(run(cut), in_axes=(None, 0, 0), axis_name="steps")
        (_, y_cut), gradients = mapped(params, *parts)
        y_cut = y_cut if whole.pooled else y_cut.reshape(1, *y.shape)
        return y, y_cut, gradient, jax.tree.map(lambda x: x.sum(0), gradients)

    return compare(params, ids, given.get("reset"))


def check(*arguments: Any, **given: Any) -> None:
    y, y_cut, gradient, gradient_cut = both(*arguments, **given)
    for each in y_cut:
        assert error(each, y) < 1e-12
    leaves = jax.tree.leaves_with_path(gradient), jax.tree.leaves(gradient_cut)
    for (path, one), other in zip(*leaves, strict=True):
        assert float(jnp.abs(one - other).max()) <= 1e-12 * max(float(jnp.abs(one).max()), 1e-3), (
            jax.tree_util.keystr(path)
        )
        assert float(jnp.abs(one).max()) > 1e-6, jax.tree_util.keystr(path)


ONE_LAYER = {"num_layers": 1, "mlp_ratio": 1}


def test_documents_positions_convolution_and_dropout() -> None:
    own = config(
        "ssd", surroundings="practice", max_length=LENGTH, residual_dropout=0.3, **ONE_LAYER
    )
    check(own, reset=RESET, dropout=True)


def test_attention_that_reads_both_ways_and_pools() -> None:
    own = config("softmax_attention", bidirectional=True, block="mamba", **ONE_LAYER, **CLASSES)
    check(own, reset=RESET, length=jnp.array(10))


@pytest.mark.parametrize("reset", [None, RESET])
def test_places_and_decays_of_attention_are_those_of_the_whole_sequence(reset: Any) -> None:
    options = (("rope_base", 100.0), ("num_groups", 1), ("window", 7))
    own = config("forgetting_attention", d_state=4, options=options, **ONE_LAYER)
    check(own, reset=reset)


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["softmax_attention", "sliding_window_attention"])
def test_rotary_positions_of_a_sequence_that_is_read_both_ways(mixer: str) -> None:
    options = (("rope_base", 100.0), ("num_groups", 1))
    sizes = {"d_state": 4, "options": options, **ONE_LAYER}
    check(config(mixer, bidirectional=True, **sizes), reset=RESET)


@pytest.mark.slow
@pytest.mark.parametrize("mixer", [x for x in systems.names() if x not in CARRY_MORE])
def test_every_architecture(mixer: str) -> None:
    own = config(mixer, surroundings="practice", bidirectional=True, remat=True, **ONE_LAYER)
    check(own, reset=RESET, length=jnp.array(10))


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["softmax_attention", "s6"])
def test_one_document_and_several_layers(mixer: str) -> None:
    check(config(mixer, surroundings="practice"))


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["qlstm", "rg_lru"])
def test_an_input_that_depends_on_where_a_document_starts(mixer: str) -> None:
    check(config(mixer, options=(("coupled", True),), **ONE_LAYER), reset=None)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("documents", [1, 2])
def test_pooling(pooling: str, documents: int) -> None:
    reset = None if documents == 1 else jnp.arange(LENGTH) == 4
    sizes = {"num_documents": documents, "pooling": pooling, **CLASSES, **ONE_LAYER}
    for length in (None, jnp.array(8)):
        check(config("linear_attention", **sizes), reset=reset, length=length)


@pytest.mark.slow
def test_a_decoder_and_sequences_of_values() -> None:
    check(config("linear_attention", head="decoder", num_decoded=3, **ONE_LAYER))
    values = jax.random.normal(jax.random.key(4), (LENGTH, 2))
    own = config("rg_lru", **ONE_LAYER, vocab_size=0, channels=2, head="values", num_outputs=1)
    check(own, inputs=values)


@pytest.mark.slow
def test_a_convolution_that_looks_back_beyond_the_neighbour() -> None:
    around = nn.Surrounding(conv_width=9)
    for reset in (None, RESET):
        check(config("linear_attention", **ONE_LAYER), around, reset=reset)


def test_what_cannot_be_cut_says_so() -> None:
    whole = nn.build(config("softmax_attention", attention_dropout=0.1, **ONE_LAYER))
    with pytest.raises(ValueError, match="attention_dropout: expected 0 where sequences are cut"):
        whole.over("steps")
    with pytest.raises(ValueError, match="carries its state alone, which no signals depend on"):
        nn.build(config("lstm", **ONE_LAYER)).over("steps")
    cut = nn.build(config("linear_attention", **ONE_LAYER)).over("steps")
    with pytest.raises(ValueError, match="does not decode; build it without shards"):
        cut.init_state(cut.init(jax.random.key(0)), 4)


@pytest.mark.parametrize("descending", [False, True])
def test_rows_of_other_devices(descending: bool) -> None:
    """What a device gets of the others, read in either order."""
    shards = engines.Shards("steps", descending)
    whole = np.arange(12.0).reshape(12, 1)
    steps = jnp.array([0, 11, 5, 5, 2, 7])

    def look(_: Any) -> Any:
        own = shards.own(jnp.asarray(whole))
        wide, narrow = shards.halo(own, 5), shards.halo(own, 1)
        rows, share = shards.rows(own, steps), shards.share(jnp.asarray(whole)[steps])
        return own, wide, narrow, shards.row(own, 7), shards.row(own, -1), rows, share

    found = jax.vmap(look, axis_name="steps", axis_size=DEVICES)(jnp.zeros(DEVICES))
    own, wide, narrow, seventh, last, rows, share = (np.asarray(x)[..., 0] for x in found)
    parts = whole.reshape(DEVICES, 3)[:: -1 if descending else 1]
    np.testing.assert_array_equal(own, parts)
    for i, part in enumerate(parts):
        before = np.append(np.zeros(5), whole[: int(part[0])])
        np.testing.assert_array_equal(wide[i], before[-5:])
        np.testing.assert_array_equal(narrow[i], before[-1:])
    assert set(seventh) == {7} and set(last) == {11}
    np.testing.assert_array_equal(rows, share)
    assert rows.shape == (DEVICES, 2)
