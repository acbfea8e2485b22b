"""The README's example of a new architecture runs as it stands there, and its model learns."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import nn, scan, systems
from dsfjax.ops import op
from dsfjax.systems import registry

README = Path(__file__).parents[1] / "README.md"


def example(text: str, heading: str) -> str:
    """The first Python block between the heading that starts so and the next of its level."""
    found = re.search(rf"^(#+) {re.escape(heading)}[^\n]*\n(.*?)(?=^\1 |\Z)", text, re.M | re.S)
    assert found, f"README.md has no heading {heading!r}"
    block = re.search(r"^```python\n(.*?)^```", found[2], re.M | re.S)
    assert block, f"README.md has no Python block under {heading!r}"
    return block[1]


def test_example_is_the_block_under_its_heading() -> None:
    text = (
        "# A\n```python\n1\n```\n## Own b\n"
        "text\n```sh\n2\n```\n```python\n3\n```\n## C\n```python\n4\n```\n"
    )
    assert example(text, "Own") == "3\n"
    with pytest.raises(AssertionError, match="no heading 'Other'"):
        example(text, "Other")
    with pytest.raises(AssertionError, match="no Python block under 'D'"):
        example(text + "## D\n", "D")


def test_new_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    code = example(README.read_text(encoding="utf-8"), "Write your own")
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 40
    known = systems.names()
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    with jax.enable_x64(False):
        exec(compile(code, str(README), "exec"), {"__name__": "readme"})
        (name,) = set(systems.names()) - set(known)
        check_architecture(name)
        check_training(name)


def test_an_op_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (README.parent / "docs" / "ops.md").read_text(encoding="utf-8")
    monkeypatch.setattr(op, "REGISTRY", dict(op.REGISTRY))
    names: dict[str, Any] = {"__name__": "ops_page"}
    exec(compile(example(text, "One of your own"), "ops.md", "exec"), names)
    x, g = jnp.array([1.0, 2.0, 4.0]), jnp.log(jnp.array([0.5, 0.5, 0.25]))
    y = names["moving_average"](x[None, :, None, None], g[None, :, None])
    np.testing.assert_allclose(y[0, :, 0, 0], [1.0, 2.5, 4.625], rtol=1e-12)
    assert "moving_average" in op.REGISTRY


def test_advice_in_python(capsys: pytest.CaptureFixture[str]) -> None:
    text = (README.parent / "docs" / "recommend.md").read_text(encoding="utf-8")
    code = compile(example(text, "Which architecture"), "recommend.md", "exec")
    exec(code, {"__name__": "advice"})
    assert capsys.readouterr().out.startswith("Try ")


def check_architecture(name: str) -> None:
    arch = systems.get(name, d_model=8)
    params = arch.init(jax.random.key(0))
    u = jax.random.normal(jax.random.key(1), (6, 8))

    def run(u: Any) -> Any:
        return scan(arch.system(params, u), u)[0]

    jacobian = np.asarray(jax.jit(jax.jacrev(run))(u))
    size = np.abs(jacobian).max(axis=(1, 3))
    assert (size[np.triu_indices(6, 1)] == 0).all()
    assert (size[np.tril_indices(6)] > 0).all()


def check_training(name: str) -> None:
    model = nn.build(nn.ModelConfig(name, vocab_size=16, d_model=8, num_layers=1))
    params, tokens = model.init(jax.random.key(0)), jnp.arange(12) % 16

    @jax.jit
    @jax.value_and_grad
    def loss(params: Any) -> Any:
        log_p = jax.nn.log_softmax(model.apply(params, tokens[:-1]))
        return -jnp.mean(jnp.take_along_axis(log_p, tokens[1:, None], axis=1))

    before, slope = loss(params)
    after, _ = loss(jax.tree.map(lambda p, g: p - 0.1 * g, params, slope))
    assert after < before
    core = slope["blocks"]["block_0"]["mixer"]["core"]
    assert all((g != 0).any() for g in jax.tree.leaves(core))
