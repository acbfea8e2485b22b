"""The rate of arithmetic that a device has at most: declared by its maker, or measured.

Model FLOP utilisation (MFU) is what a model needs over this. A number that nobody has published is
not made up: where the table has none, there is none.
"""

from __future__ import annotations

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp

from dsfjax.core import Precision

# Dense products of matrices, operations per second and device, by `Device.device_kind` in full: a
# part of a GPU (MIG) and other variants of it have other names and so no number here.
_A100 = {"float32": 19.5e12, "tf32": 156e12, "bfloat16": 312e12}  # NVIDIA A100 data sheet, 2021
_H100 = {"float32": 67e12, "tf32": 494.7e12, "bfloat16": 989.4e12}  # NVIDIA H100 and H200, SXM
_H100_PCIE = {"float32": 51e12, "tf32": 378e12, "bfloat16": 756e12}  # NVIDIA H100 data sheet
_L4 = {"float32": 30.3e12, "tf32": 60e12, "bfloat16": 121e12}  # NVIDIA L4 data sheet, 2023
_L40S = {"float32": 91.6e12, "tf32": 183e12, "bfloat16": 362e12}  # NVIDIA L40S data sheet, 2023
# A TPU multiplies in bfloat16; its makers declare no rate for products in float32, which take
# several passes. Rates of a chip are from cloud.google.com/tpu/docs/system-architecture-tpu-vm; of
# v2 and v3 a device is one of the two cores of a chip.
DECLARED: dict[str, dict[str, float]] = {
    "NVIDIA A100-SXM4-40GB": _A100,
    "NVIDIA A100-SXM4-80GB": _A100,
    "NVIDIA A100-PCIE-40GB": _A100,
    "NVIDIA A100 80GB PCIe": _A100,
    "NVIDIA H100 80GB HBM3": _H100,
    "NVIDIA H200": _H100,
    "NVIDIA H100 PCIe": _H100_PCIE,
    "NVIDIA L4": _L4,
    "NVIDIA L40S": _L40S,
    "Tesla V100-SXM2-16GB": {"float32": 15.7e12},  # NVIDIA V100 data sheet; it has no bfloat16
    "Tesla V100-SXM2-32GB": {"float32": 15.7e12},
    "TPU v2": {"bfloat16": 22.5e12},
    "TPU v3": {"bfloat16": 61.5e12},
    "TPU v4": {"bfloat16": 275e12},
    "TPU v5 lite": {"bfloat16": 197e12},
    "TPU v5": {"bfloat16": 459e12},
    "TPU v5p": {"bfloat16": 459e12},
    "TPU v6 lite": {"bfloat16": 918e12},
}
"""Device kind to precision to operations per second."""


def declared(device: Any, precision: str = "float32") -> float | None:
    """What the maker of a device says that it does at most.

    Args:
        device: A ``jax.Device``.
        precision: Of the products: "float32", "tf32" or "bfloat16".

    Returns:
        Operations per second, a multiplication and an addition being two; None where the table has
        none, as for CPUs.

    Examples:
        >>> from types import SimpleNamespace
        >>> declared(SimpleNamespace(device_kind="NVIDIA H200"), "bfloat16")
        989400000000000.0
        >>> declared(SimpleNamespace(device_kind="NVIDIA H200 MIG 1g.18gb"), "bfloat16")
    """
    return DECLARED.get(device.device_kind, {}).get(precision)


@functools.lru_cache
def measured(precision: str = "float32", *, size: int = 1024, repeats: int = 5) -> float:
    """What the default device does in a product of matrices, measured once per process.

    On a CPU that is all cores of this process, however many devices they count as.

    Args:
        precision: Of the products: "float32", "bfloat16" or "tf32".
        size: Side of the square matrices.
        repeats: Runs; the fastest counts, as whatever else the machine does only slows it down.

    Returns:
        Operations per second.

    Examples:
        >>> measured(size=64) > 1e6
        True
    """
    policy = Precision.named(precision)
    x = jnp.ones((size, size), policy.compute or "float32")
    product = jax.jit(lambda x: jnp.matmul(x, x, precision=policy.products(x.dtype)))
    jax.block_until_ready(product(x))
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(product(x))
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times)
