"""Floor 3: batched functions under the names that people know, each with the System behind it.

They have the names, the order of arguments, the layouts and the defaults of the peer's, and run
`dsfjax.scan` on a System per sequence; ``op.system(…)`` is that System.

Arguments keep their order as far as the peer's are all there; behind the first that is left out
they are keywords. `names` lists the functions, `table` says which is which.
"""

from dsfjax.ops.linear import chunk_gla as chunk_gla
from dsfjax.ops.linear import chunk_linear_attn as chunk_linear_attn
from dsfjax.ops.linear import chunk_simple_gla as chunk_simple_gla
from dsfjax.ops.linear import fused_chunk_linear_attn as fused_chunk_linear_attn
from dsfjax.ops.linear import fused_chunk_simple_gla as fused_chunk_simple_gla
from dsfjax.ops.linear import fused_recurrent_gla as fused_recurrent_gla
from dsfjax.ops.linear import fused_recurrent_linear_attn as fused_recurrent_linear_attn
from dsfjax.ops.linear import fused_recurrent_simple_gla as fused_recurrent_simple_gla
from dsfjax.ops.op import REGISTRY as _REGISTRY
from dsfjax.ops.op import Op as Op


def names() -> tuple[str, ...]:
    """Names of all ops.

    Example:
        >>> "chunk_gla" in names()
        True
    """
    return tuple(sorted(_REGISTRY))
