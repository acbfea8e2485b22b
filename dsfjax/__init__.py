"""dsfjax: attention, state space models and RNNs as one object, a linear time-varying system.

    h_t = A_t h_{t-1} + B_t u_t,    y_t = C_t h_t + D_t u_t

Build a `System` from structured parts (or take one from `dsfjax.systems`), run it with `scan`,
decode with `step`, cut the sequence over devices with `scan_shards`, look inside with
`materialize`, `to_dense` and `explain`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsfjax.core import Dense as Dense
    from dsfjax.core import DenseInput as DenseInput
    from dsfjax.core import DenseOutput as DenseOutput
    from dsfjax.core import DenseSkip as DenseSkip
    from dsfjax.core import Diagonal as Diagonal
    from dsfjax.core import DiagonalPlusLowRank as DiagonalPlusLowRank
    from dsfjax.core import Factored as Factored
    from dsfjax.core import GivenNormalizer as GivenNormalizer
    from dsfjax.core import InnerOutput as InnerOutput
    from dsfjax.core import InputMap as InputMap
    from dsfjax.core import KernelSystem as KernelSystem
    from dsfjax.core import KVCache as KVCache
    from dsfjax.core import Normalizer as Normalizer
    from dsfjax.core import OuterInput as OuterInput
    from dsfjax.core import OutputMap as OutputMap
    from dsfjax.core import Precision as Precision
    from dsfjax.core import Scalar as Scalar
    from dsfjax.core import Skip as Skip
    from dsfjax.core import SummedNormalizer as SummedNormalizer
    from dsfjax.core import System as System
    from dsfjax.core import TokenSkip as TokenSkip
    from dsfjax.core import Transition as Transition
    from dsfjax.core import ValueSkip as ValueSkip
    from dsfjax.core import concat_time as concat_time
    from dsfjax.core import constant as constant
    from dsfjax.core import feature_system as feature_system
    from dsfjax.core import pad_state as pad_state
    from dsfjax.core import parallel as parallel
    from dsfjax.core import pytree as pytree
    from dsfjax.core import rescale as rescale
    from dsfjax.core import reset_from_lengths as reset_from_lengths
    from dsfjax.core import reset_from_segment_ids as reset_from_segment_ids
    from dsfjax.core import separable_system as separable_system
    from dsfjax.core import series as series
    from dsfjax.core import slice_time as slice_time
    from dsfjax.core import stabilized as stabilized
    from dsfjax.core import static as static
    from dsfjax.core import steps as steps
    from dsfjax.core import to_dense as to_dense
    from dsfjax.core import truncate_kernel as truncate_kernel
    from dsfjax.engines import Engine as Engine
    from dsfjax.engines import Explanation as Explanation
    from dsfjax.engines import Summary as Summary
    from dsfjax.engines import combine as combine
    from dsfjax.engines import explain as explain
    from dsfjax.engines import linearize as linearize
    from dsfjax.engines import materialize as materialize
    from dsfjax.engines import scan as scan
    from dsfjax.engines import scan_shards as scan_shards
    from dsfjax.engines import select as select
    from dsfjax.engines import solve as solve
    from dsfjax.engines import step as step
    from dsfjax.engines import summarize as summarize
    from dsfjax.interop.published import Opened as Opened
    from dsfjax.interop.published import open as open

__version__ = "0.1.0"

_SUBPACKAGES = (
    "analysis",
    "aspects",
    "bench",
    "core",
    "cost",
    "engines",
    "guidance",
    "interop",
    "nn",
    "ops",
    "report",
    "selfcheck",
    "systems",
    "tasks",
    "training",
)
__all__ = [
    "Dense",
    "DenseInput",
    "DenseOutput",
    "DenseSkip",
    "Diagonal",
    "DiagonalPlusLowRank",
    "Factored",
    "GivenNormalizer",
    "InnerOutput",
    "InputMap",
    "KernelSystem",
    "KVCache",
    "Normalizer",
    "OuterInput",
    "OutputMap",
    "Precision",
    "Scalar",
    "Skip",
    "SummedNormalizer",
    "System",
    "TokenSkip",
    "Transition",
    "ValueSkip",
    "concat_time",
    "constant",
    "feature_system",
    "pad_state",
    "parallel",
    "pytree",
    "rescale",
    "reset_from_lengths",
    "reset_from_segment_ids",
    "separable_system",
    "series",
    "slice_time",
    "stabilized",
    "static",
    "steps",
    "to_dense",
    "truncate_kernel",
    "Engine",
    "Explanation",
    "Summary",
    "combine",
    "explain",
    "linearize",
    "materialize",
    "scan",
    "scan_shards",
    "select",
    "solve",
    "step",
    "summarize",
    "Opened",
    "open",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used.

    ``import dsfjax`` alone loads nothing: commands answer an interrupt, ``--help`` and a misspelt
    option before JAX is there, and only ``nn`` loads Flax.
    """
    if name in _SUBPACKAGES:
        return importlib.import_module(f"dsfjax.{name}")
    if name not in __all__:
        raise AttributeError(f"module 'dsfjax' has no attribute {name!r}")
    for package in ("core", "engines", "interop.published"):
        inside = importlib.import_module(f"dsfjax.{package}")
        if hasattr(inside, name):
            found = globals()[name] = getattr(inside, name)
            return found
    raise AttributeError(f"dsfjax: {name!r} is public, but no package has it")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBPACKAGES})
