r"""The HiPPO matrix of S4 and S5: how its normal part is diagonalised."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class HiPPO(NamedTuple):
    r"""A = V (diag Λ − P̃ P̃^*) V^*, the HiPPO-LegS matrix, of N states.

    Attributes:
        A: (N, N), real.
        P: Its low-rank part (N,), real: A + P Pᵀ is normal.
        B: The input vector of LegS (N,), real.
        eigenvalues: Λ (N,), complex, real parts −½, in ascending order of their imaginary parts.
        V: Eigenvectors (N, N), complex, unique but for the phase of each column.
    """

    A: np.ndarray
    P: np.ndarray
    B: np.ndarray
    eigenvalues: NDArray[np.complex128]
    V: NDArray[np.complex128]


def hippo(num_states: int) -> HiPPO:
    r"""HiPPO-LegS and its normal part, in float64.

    .. math::
       A_{nk} = -\begin{cases} \sqrt{(2n+1)(2k+1)} & n > k \\ n + 1 & n = k \\ 0 & n < k
       \end{cases}, \qquad P_n = \sqrt{n + ½}, \qquad B_n = \sqrt{2n + 1} .

    Args:
        num_states: N.

    References:
        Gu et al. (2020), arXiv:2008.07669; Gu et al. (2022), arXiv:2111.00396.

    Example:
        >>> hippo(2).A.round(3).tolist(), hippo(2).eigenvalues.real.tolist()
        ([[-1.0, -0.0], [-1.732, -2.0]], [-0.5, -0.5])
    """
    n = np.arange(num_states)
    root = np.sqrt(2 * n + 1)
    A = -(np.tril(np.outer(root, root)) - np.diag(n))
    P = np.sqrt(n + 0.5)
    normal = A + np.outer(P, P)  # −½ I plus a skew-symmetric matrix
    imaginary, V = np.linalg.eigh(-1j * (normal + 0.5 * np.eye(num_states)))
    spectrum = -0.5 + 1j * imaginary
    return HiPPO(A, P, root, spectrum.astype(np.complex128), V.astype(np.complex128))
