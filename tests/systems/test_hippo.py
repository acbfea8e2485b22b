"""The HiPPO matrix in the basis of its normal part, against that of the original code."""

import numpy as np
import pytest

from dsfjax.systems.hippo import hippo
from tests import goldens


@pytest.mark.parametrize("name", goldens.names("hippo_*"))
def test_hippo_is_the_original(name: str) -> None:
    file = goldens.load(name)
    found = hippo(file.meta["kwargs"]["N"])
    for key, value in (("A", found.A), ("P", found.P), ("B", found.B)):
        np.testing.assert_allclose(value, file[key], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.eigenvalues, file["Lambda"], rtol=0, atol=1e-10)
    # Eigenvectors are unique but for their phases.
    for key, value in (("P_tilde", found.P), ("B_tilde", found.B)):
        turned = np.abs(found.V.conj().T @ value)
        np.testing.assert_allclose(turned, np.abs(file[key]), rtol=0, atol=1e-10)
    normal = found.V * found.eigenvalues[None] @ found.V.conj().T
    np.testing.assert_allclose(normal, found.A + np.outer(found.P, found.P), atol=1e-10)
