"""Floor 3: batched functions under the names that people know, each with the System behind it.

They have the names, the order of arguments, the layouts and the defaults of the peer's, and run
`dsfjax.scan` on a System per sequence; ``op.system(…)`` is that System.

Arguments keep their order as far as the peer's are all there; behind the first that is left out
they are keywords. `names` lists the functions, `table` says which is which.
"""

from dsfjax.ops.conv import causal_conv1d_fn as causal_conv1d_fn
from dsfjax.ops.conv import causal_conv1d_update as causal_conv1d_update
from dsfjax.ops.cyclic_flow import chunk_cyfa as chunk_cyfa
from dsfjax.ops.cyclic_flow import fused_recurrent_cyfa as fused_recurrent_cyfa
from dsfjax.ops.delta import chunk_delta_rule as chunk_delta_rule
from dsfjax.ops.delta import chunk_gated_delta_rule as chunk_gated_delta_rule
from dsfjax.ops.delta import chunk_gdn as chunk_gdn
from dsfjax.ops.delta import fused_recurrent_delta_rule as fused_recurrent_delta_rule
from dsfjax.ops.delta import fused_recurrent_gated_delta_rule as fused_recurrent_gated_delta_rule
from dsfjax.ops.delta import fused_recurrent_gdn as fused_recurrent_gdn
from dsfjax.ops.delta_product import chunk_gated_delta_product as chunk_gated_delta_product
from dsfjax.ops.dplr import chunk_comba as chunk_comba
from dsfjax.ops.dplr import chunk_dplr_delta_rule as chunk_dplr_delta_rule
from dsfjax.ops.dplr import chunk_gated_oja_rule as chunk_gated_oja_rule
from dsfjax.ops.dplr import chunk_iplr_delta_rule as chunk_iplr_delta_rule
from dsfjax.ops.dplr import fused_recurrent_comba as fused_recurrent_comba
from dsfjax.ops.dplr import fused_recurrent_dplr_delta_rule as fused_recurrent_dplr_delta_rule
from dsfjax.ops.dplr import fused_recurrent_gated_oja_rule as fused_recurrent_gated_oja_rule
from dsfjax.ops.dplr import fused_recurrent_iplr_delta_rule as fused_recurrent_iplr_delta_rule
from dsfjax.ops.gated import chunk_gla as chunk_gla
from dsfjax.ops.gated import chunk_hgrn as chunk_hgrn
from dsfjax.ops.gated import fused_recurrent_gla as fused_recurrent_gla
from dsfjax.ops.gated import fused_recurrent_hgrn as fused_recurrent_hgrn
from dsfjax.ops.kimi import chunk_gdn2 as chunk_gdn2
from dsfjax.ops.kimi import chunk_kda as chunk_kda
from dsfjax.ops.kimi import fused_recurrent_gdn2 as fused_recurrent_gdn2
from dsfjax.ops.kimi import fused_recurrent_kda as fused_recurrent_kda
from dsfjax.ops.linear import chunk_lightning_attn as chunk_lightning_attn
from dsfjax.ops.linear import chunk_linear_attn as chunk_linear_attn
from dsfjax.ops.linear import chunk_retention as chunk_retention
from dsfjax.ops.linear import chunk_simple_gla as chunk_simple_gla
from dsfjax.ops.linear import fused_chunk_linear_attn as fused_chunk_linear_attn
from dsfjax.ops.linear import fused_chunk_retention as fused_chunk_retention
from dsfjax.ops.linear import fused_chunk_simple_gla as fused_chunk_simple_gla
from dsfjax.ops.linear import fused_recurrent_lightning_attn as fused_recurrent_lightning_attn
from dsfjax.ops.linear import fused_recurrent_linear_attn as fused_recurrent_linear_attn
from dsfjax.ops.linear import fused_recurrent_retention as fused_recurrent_retention
from dsfjax.ops.linear import fused_recurrent_simple_gla as fused_recurrent_simple_gla
from dsfjax.ops.linear import parallel_retention as parallel_retention
from dsfjax.ops.linear import parallel_simple_gla as parallel_simple_gla
from dsfjax.ops.mamba_split import (
    mamba_split_conv1d_scan_combined as mamba_split_conv1d_scan_combined,
)
from dsfjax.ops.mamba_ssm import mamba_chunk_scan_combined as mamba_chunk_scan_combined
from dsfjax.ops.mamba_ssm import selective_scan_fn as selective_scan_fn
from dsfjax.ops.mamba_ssm import selective_state_update as selective_state_update
from dsfjax.ops.mamba_ssm import ssd_minimal_discrete as ssd_minimal_discrete
from dsfjax.ops.mamba_ssm_3 import mamba3_mimo as mamba3_mimo
from dsfjax.ops.mamba_ssm_3 import mamba3_siso_combined as mamba3_siso_combined
from dsfjax.ops.mesa import chunk_mesa_net as chunk_mesa_net
from dsfjax.ops.mesa import mesa_net_decoding_one_step as mesa_net_decoding_one_step
from dsfjax.ops.mlstm_kernels import mlstm as mlstm
from dsfjax.ops.mlstm_kernels import (
    mlstm_chunkwise__native_autograd as mlstm_chunkwise__native_autograd,
)
from dsfjax.ops.mlstm_kernels import mlstm_siging as mlstm_siging
from dsfjax.ops.mlstm_kernels import (
    mlstm_siging_chunkwise__xl_chunk as mlstm_siging_chunkwise__xl_chunk,
)
from dsfjax.ops.momentum import chunk_momentum_delta_rule as chunk_momentum_delta_rule
from dsfjax.ops.momentum import (
    fused_recurrent_momentum_delta_rule as fused_recurrent_momentum_delta_rule,
)
from dsfjax.ops.op import REGISTRY as _REGISTRY
from dsfjax.ops.op import Op as Op
from dsfjax.ops.parallel import parallel_attn as parallel_attn
from dsfjax.ops.parallel import parallel_forgetting_attn as parallel_forgetting_attn
from dsfjax.ops.parallel import parallel_path_attn as parallel_path_attn
from dsfjax.ops.parallel import parallel_wall_attn as parallel_wall_attn
from dsfjax.ops.polynomial import fused_chunk_based as fused_chunk_based
from dsfjax.ops.polynomial import parallel_based as parallel_based
from dsfjax.ops.polynomial import parallel_rebased as parallel_rebased
from dsfjax.ops.preconditioned import (
    chunk_precond_gated_delta_rule as chunk_precond_gated_delta_rule,
)
from dsfjax.ops.preconditioned import chunk_precond_kda as chunk_precond_kda
from dsfjax.ops.preconditioned import (
    fused_recurrent_precond_gated_delta_rule as fused_recurrent_precond_gated_delta_rule,
)
from dsfjax.ops.preconditioned import fused_recurrent_precond_kda as fused_recurrent_precond_kda
from dsfjax.ops.real_gated import rg_lru as rg_lru
from dsfjax.ops.rwkv import chunk_rwkv6 as chunk_rwkv6
from dsfjax.ops.rwkv import chunk_rwkv7 as chunk_rwkv7
from dsfjax.ops.rwkv import fused_recurrent_rwkv4 as fused_recurrent_rwkv4
from dsfjax.ops.rwkv import fused_recurrent_rwkv6 as fused_recurrent_rwkv6
from dsfjax.ops.rwkv import fused_recurrent_rwkv7 as fused_recurrent_rwkv7
from dsfjax.ops.slots import chunk_abc as chunk_abc
from dsfjax.ops.slots import chunk_gsa as chunk_gsa
from dsfjax.ops.slots import fused_recurrent_gsa as fused_recurrent_gsa


def names() -> tuple[str, ...]:
    """Names of all ops.

    Example:
        >>> "chunk_gla" in names()
        True
    """
    return tuple(sorted(_REGISTRY))


def table() -> str:
    """Which function of which package is which of ours, as a table in Markdown."""
    rows = [
        (f"`{op.path(name)}`", f"`{op.text(name)}`")
        for name, op in sorted(_REGISTRY.items(), key=lambda item: (item[1].peer, item[0]))
    ]
    head = [("your call", "`dsfjax.ops.`"), ("---", "---")]
    return "\n".join(f"| {yours} | {ours} |" for yours, ours in head + rows)
