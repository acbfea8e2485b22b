"""An engine of one's own, defined here, runs systems as the built-in ones do."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import pytest

import dsfjax
from dsfjax import explain, scan, select
from dsfjax.engines import ENGINES, Chunked
from dsfjax.engines.chunks.elementwise import ELEMENTWISE
from dsfjax.engines.chunks.wy import WY
from dsfjax.engines.dispatch import resolve
from tests import reference_loop as reference
from tests import systems_zoo as zoo
from tests.engine_runs import compiled, inputs
from tests.reference_loop import error


@dataclasses.dataclass(frozen=True)
class Matrices(dsfjax.Engine):
    """h_t = A_t h + f_t with A_t as a matrix; NaN reach further than they should (0 · NaN)."""

    name = "matrices"
    unroll: int = 1

    def against(self, system, *, states):
        return "decays per channel" if system.A.per_channel else None

    def run(self, recurrence, h0):
        length, n = recurrence.length, h0.shape[1]
        A = recurrence.A.matrix()
        A = A * jnp.eye(n)[None, None] if A.shape[-1] == 1 else A
        A = jnp.broadcast_to(A, (length, A.shape[1], n, n))
        if recurrence.reset is not None:
            A = A * (~recurrence.reset[:, None, None, None]).astype(A.dtype)
        f = jnp.broadcast_to(recurrence.forcing(), (length, *h0.shape))

        def body(h, step):
            h = jnp.matmul(step[0], h) + step[1]
            return h, h

        h_last, states = jax.lax.scan(body, h0, (A, f), unroll=self.unroll)
        return recurrence.read(states), h_last


def everything(system, u, h0, method):
    """Values and states in both directions, a batch, and gradients."""

    def loss(u, h0):
        y, h = scan(system, u, h0, method=method)
        return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.abs(h) ** 2)

    two = jnp.stack([u, 2 * u])
    return (
        scan(system, u, h0, method=method, return_states=True),
        scan(system, u, h0, method=method, reverse=True),
        jax.vmap(lambda u: scan(system, u, h0, method=method)[0])(two),
        jax.grad(loss, argnums=(0, 1))(u, h0),
        scan(system, u.at[9, 1].set(jnp.nan), h0, method=method),
    )


@pytest.mark.parametrize("name", ["scalar_summed", "low_rank"])
def test_it_runs_as_the_others_do(name):
    system, u, h0 = inputs(name, 20)
    assert system.reset is not None
    found = compiled(everything, method=Matrices())(system, u, h0)
    expected = reference.run(system, u, h0), reference.run(system, u, h0, reverse=True)
    for got, wanted in zip(found[0], expected[0], strict=True):
        assert error(got, wanted) < 1e-12
    for got, wanted in zip(found[1], expected[1][:2], strict=True):
        assert error(got, wanted) < 1e-12
    of_sequential = compiled(everything, method="sequential")(system, u, h0)
    for got, wanted in zip(found[2:4], of_sequential[2:4], strict=True):
        assert jax.tree.all(jax.tree.map(lambda x, y: error(x, y) < 1e-12, got, wanted))
    y, wanted = found[4][0], of_sequential[4][0]
    assert jnp.isnan(y).any() and not jnp.isnan(y).all()
    assert jnp.array_equal(y, wanted, equal_nan=True)  # the guard has the values of the definition


def test_it_is_asked_what_it_runs():
    system, u, _ = inputs("diagonal_full", 4)
    with pytest.raises(ValueError, match="'matrices' does not run decays per channel; use one of"):
        scan(system, u, method=Matrices())
    with pytest.raises(ValueError, match="does not run decays per channel"):
        explain(system, method=Matrices())
    kernel = zoo.kernel_system(4)
    with pytest.raises(ValueError, match="KernelSystem .a kernel has no recurrence"):
        scan(kernel, zoo.tokens(kernel, 4), method=Matrices())


def test_equal_engines_share_a_program():
    system, u, _ = inputs("scalar", 5)
    traced = []

    @dataclasses.dataclass(frozen=True)
    class Counted(Matrices):
        def run(self, recurrence, h0):
            traced.append(self)
            return super().run(recurrence, h0)

    scan(system, u, method=Counted())
    once = len(traced)
    scan(system, u, method=Counted())
    assert len(traced) == once
    scan(system, u, method=Counted(unroll=2))
    assert len(traced) > once


def test_what_is_no_engine_is_refused():
    system, u, _ = inputs("scalar", 5)

    @dataclasses.dataclass
    class Loose(dsfjax.Engine):  # not frozen: no hash
        name = "loose"

        def run(self, recurrence, h0):
            raise AssertionError

    with pytest.raises(TypeError, match="an engine that can be hashed, got Loose.*frozen"):
        scan(system, u, method=Loose())
    with pytest.raises(TypeError, match="a name or an Engine, got int"):
        inspect.unwrap(resolve)(system, 5, 3)  # pyright: ignore[reportArgumentType]


def test_forward_mode_says_which_engine_refused():
    system, u, h0 = inputs("scalar", 5)
    with pytest.raises(TypeError, match='method "matrices" has a backward pass of its own'):
        jax.jvp(lambda u: scan(system, u, h0, method=Matrices())[0], (u,), (u,))


@pytest.mark.parametrize("name", ["scalar", "low_rank", "dense"])
def test_select_gives_what_auto_runs(name):
    system, u, h0 = inputs(name, 20)
    engine, reason = select(system, 20)
    said = explain(system)
    assert (said.method, said.reason) == (engine.name, reason)
    assert type(engine) is type(ENGINES[engine.name])
    auto, given = (scan(system, u, h0, method=m)[0] for m in ("auto", engine))
    assert jnp.array_equal(auto, given)
    assert explain(system, method=engine).flops == said.flops


def test_sizes_of_chunks_can_be_chosen():
    system, u, h0 = inputs("scalar", 20)
    expected = reference.run(system, u, h0)
    engine = Chunked(chunk=3, segment=6)
    assert explain(system, method=engine).chunk == 3
    assert error(scan(system, u, h0, method=engine)[0], expected.y) < 1e-12
    engine = Chunked(ELEMENTWISE)
    assert explain(system, method=engine).form == "elementwise"
    assert error(scan(system, u, h0, method=engine)[0], expected.y) < 1e-12
    with pytest.raises(ValueError, match="Scalar by matrix products, WY form .it is not diagonal"):
        scan(system, u, method=Chunked(WY))
