"""Outputs and gradients agree with the original implementations, in float64."""

import numpy as np
import pytest

from tests import goldens
from tests.interop import parity
from tests.systems_zoo import slow_unless

FORWARD, GRADIENT, ADAMW = 1e-10, 1e-8, 1e-8


def beyond(errors: dict[str, float], limit: float) -> dict[str, float]:
    return {name: error for name, error in errors.items() if not error <= limit}


@pytest.mark.parametrize("name", slow_unless(parity.QUICK, parity.MODULES))
def test_modules(name: str) -> None:
    errors = parity.module_errors(name)
    assert not beyond(errors.forward, FORWARD)
    assert not beyond(errors.gradients, GRADIENT)


@pytest.mark.parametrize("name", slow_unless(parity.QUICK, parity.LANGUAGE_MODELS))
def test_language_models(name: str) -> None:
    errors = parity.language_model_errors(name)
    assert not beyond(errors.forward, FORWARD)
    assert not beyond(errors.gradients, GRADIENT)
    assert not beyond(errors.adamw, ADAMW)


@pytest.mark.parametrize("name", slow_unless(parity.QUICK, ["dsf_qlstm", "dsf_s6_2"]))
def test_weights_that_the_original_never_reads_have_no_gradient(name: str) -> None:
    file = goldens.load(name)
    run = parity._value_and_grad(parity.of(name))
    _, (gradients, _) = run(file.group("p"), file["x"], file["g"], {})
    unread = file.meta["params_without_gradient"]
    assert unread
    for weight in unread:
        np.testing.assert_array_equal(gradients[weight], 0.0)


def test_the_normalisers_differ() -> None:
    """The four files share module and keywords, so each must need its own ``normalizer``."""
    outputs = [goldens.load(f"dsf_norm_{f}_h4")["y"] for f in ("exp", "softplus", "sigmoid")]
    for a, b in zip(outputs[1:], outputs, strict=False):
        assert parity.normwise(a, b) > 0.1
