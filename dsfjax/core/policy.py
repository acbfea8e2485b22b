"""`Precision`: in which dtypes parameters, products and sums are kept, as one hashable policy."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dsfjax._util import names
from dsfjax.core.kernel import KernelSystem
from dsfjax.core.system import System

Products = Literal["highest", "high", "default"]
_KNOWN = {
    "params": ("float32", "float64", "bfloat16"),
    "compute": ("float32", "float64", "bfloat16"),
    "accumulate": ("float32", "float64"),
    "matmul": ("highest", "high", "default"),
}


@dataclass(frozen=True)
class Precision:
    """Dtypes of a computation. What is None follows from the inputs.

    States and sums are at least float32 under every policy.

    Attributes:
        params: Dtype in which a model keeps its parameters; of no meaning to `dsfjax.scan`.
        compute: Dtype to which tokens, and all real arrays of a system but its transition and
            normaliser (of a kernel, its transition, decays and sink), are rounded before they are
            multiplied. Outputs have it, too.
        accumulate: Dtype of states and sums, at least; what is not rounded is kept in it.
        matmul: Precision of matrix products of float32 on devices that have faster ones: "highest"
            is float32, "high" TF32 or three passes of bfloat16, "default" the fastest. None is
            "highest", and "default" for tokens in bfloat16.

    Raises:
        ValueError: For an unknown name.

    Example:
        >>> import jax.numpy as jnp, dsfjax
        >>> A = dsfjax.Scalar(jnp.log(jnp.array([[0.5]])))
        >>> ema = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 1))
        >>> low = dsfjax.Precision(compute="bfloat16")
        >>> y, h = dsfjax.scan(ema, jnp.ones((4, 1)), precision=low)
        >>> y.dtype, h.dtype
        (dtype(bfloat16), dtype('float32'))
    """

    params: str = "float32"
    compute: str | None = None
    accumulate: str | None = None
    matmul: Products | None = None

    def __post_init__(self) -> None:
        for name, known in _KNOWN.items():
            value = getattr(self, name)
            if value is not None:
                names.choose(f"{name} of Precision", value, known)

    @classmethod
    def named(cls, name: str) -> Precision:
        """The policy that commands call "float32", "bfloat16" or "tf32".

        Example:
            >>> Precision.named("tf32").matmul
            'high'
        """
        policies = {
            "float32": cls(),
            "bfloat16": cls(compute="bfloat16"),
            "tf32": cls(matmul="high"),
        }
        return policies[names.choose("precision", name, policies)]

    def products(self, dtype: Any) -> Products:
        """Precision of matrix products for tokens of a dtype."""
        if self.matmul is not None:
            return self.matmul
        return "default" if np.dtype(dtype) == jnp.bfloat16 else "highest"

    def cast(self, system: System | KernelSystem, u: Array) -> tuple[System | KernelSystem, Array]:
        """System and tokens in the dtypes of the policy.

        Raises:
            ValueError: For float64 where JAX has it switched off.
        """
        if self.compute is None and self.accumulate is None:
            return system, u
        if "float64" in (self.compute, self.accumulate) and not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
            raise ValueError(
                f"{self}: expected a JAX with float64, got one without. Set JAX_ENABLE_X64=1."
            )
        parts = {name: _to(getattr(system, name), self.compute) for name in system.multiplied}
        for name in system.accumulated:
            parts[name] = _to(parts.get(name, getattr(system, name)), self.accumulate)
        return dataclasses.replace(system, **parts), _to(u, self.compute)


def _to(tree: Any, dtype: str | None) -> Any:
    """Real arrays in a dtype; complex ones in the counterpart that is at least complex64."""
    if dtype is None:
        return tree
    wide = np.complex128 if dtype == "float64" else np.complex64

    def one(x: Array) -> Array:
        if jnp.issubdtype(x.dtype, jnp.complexfloating):
            return x.astype(wide)
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(one, tree)


DEFAULT = Precision()
"""What follows from the inputs."""
