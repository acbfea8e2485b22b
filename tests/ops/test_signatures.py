"""Names, order and defaults of arguments are those of the peer, name by name."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from dsfjax import ops

STATES = "scale initial_state output_final_state"


@pytest.mark.parametrize(
    ("name", "order", "defaults"),
    [
        (
            "chunk_linear_attn",
            "q k v scale initial_state output_final_state normalize",
            {"normalize": True},
        ),
        (
            "fused_recurrent_linear_attn",
            "q k v scale initial_state output_final_state reverse normalize cu_seqlens",
            {"normalize": False},
        ),
        ("chunk_gla", "q k v g scale initial_state output_final_state state_v_first", {}),
        ("fused_recurrent_gla", "q k v gk gv scale initial_state output_final_state reverse", {}),
        ("chunk_simple_gla", "q k v g g_gamma scale initial_state output_final_state", {}),
        ("chunk_lightning_attn", "q k v layer_idx num_layers scale initial_state", {}),
        ("chunk_gated_delta_rule", "q k v g beta scale", {}),
        ("fused_recurrent_gated_delta_rule", "q k v g gk gv beta scale", {"g": None, "beta": None}),
        ("chunk_gated_delta_product", "q k v g beta num_householder scale", {}),
        ("chunk_comba", "q k v p g beta scale", {"beta": None}),
        ("fused_recurrent_comba", "q k p v g beta scale", {"beta": None}),
        ("chunk_kda", "q k v g beta scale", {"lower_bound": None}),
        ("fused_recurrent_kda", "q k v g beta A_log dt_bias scale", {}),
        ("chunk_gdn2", "q k v g b w scale", {}),
        ("fused_recurrent_gdn2", "q k v g b w A_log dt_bias scale", {}),
        ("chunk_dplr_delta_rule", "q k v a b gk scale", {}),
        ("chunk_rwkv6", "r k v w u scale", {}),
        ("chunk_rwkv7", "r w k v a b scale", {"scale": 1.0, "output_final_state": False}),
        ("fused_recurrent_rwkv7", "r w k v a b scale", {"scale": None, "output_final_state": True}),
        ("fused_recurrent_rwkv4", "w u k v state", {}),
        ("chunk_hgrn", "x g initial_state output_final_state", {}),
        ("parallel_based", "q k v scale use_norm", {"use_norm": True}),
        ("parallel_rebased", "q k v eps use_scale use_normalize", {"eps": 1e-5}),
        ("chunk_mesa_net", "q k v g beta lamb h_kk_init h_kv_init output_final_state", {}),
        ("chunk_precond_gated_delta_rule", "q k v g_atk g beta_atk beta scale", {"x": 1.5}),
        ("fused_recurrent_precond_gated_delta_rule", "q k v g gk gv beta g_atk beta_atk scale", {}),
        (
            "chunk_momentum_delta_rule",
            "q k v log_alpha log_mu p beta eta scale",
            {"use_qk_l2norm_in_kernel": True, "use_p_times_alpha": True},
        ),
        ("chunk_simple_gla", f"q k v g g_gamma {STATES} state_v_first cu_seqlens", {}),
        ("fused_chunk_simple_gla", f"q k v g g_gamma {STATES} cu_seqlens", {}),
        (
            "fused_recurrent_simple_gla",
            f"q k v g g_gamma {STATES} reverse state_v_first cu_seqlens",
            {},
        ),
        ("chunk_retention", f"q k v {STATES} cu_seqlens", {}),
        ("fused_chunk_retention", f"q k v {STATES} cu_seqlens", {}),
        ("fused_recurrent_retention", f"q k v {STATES} reverse state_v_first cu_seqlens", {}),
        ("chunk_lightning_attn", f"q k v layer_idx num_layers {STATES} cu_seqlens", {}),
        (
            "fused_recurrent_lightning_attn",
            f"q k v layer_idx num_layers {STATES} reverse cu_seqlens",
            {},
        ),
        ("chunk_rwkv6", f"r k v w u {STATES} cu_seqlens", {}),
        ("fused_recurrent_rwkv6", f"r k v w u {STATES} reverse cu_seqlens", {}),
        ("chunk_dplr_delta_rule", f"q k v a b gk {STATES} cu_seqlens", {}),
        ("fused_recurrent_dplr_delta_rule", f"q k v a b gk {STATES} reverse cu_seqlens", {}),
        ("chunk_gsa", f"q k v s g {STATES}", {}),
        ("fused_recurrent_gsa", f"q k v s g {STATES} reverse cu_seqlens", {}),
        ("parallel_attn", "q k v g scale window_size cu_seqlens", {}),
        ("parallel_wall_attn", "q k v g", {}),
        ("parallel_path_attn", "q k v w beta g scale cu_seqlens", {}),
    ],
)
def test_order_and_defaults_are_those_of_the_peer(
    name: str, order: str, defaults: dict[str, Any]
) -> None:
    parameters = inspect.signature(getattr(ops, name)).parameters
    expected = order.split()
    assert list(parameters)[: len(expected)] == expected
    assert all(parameters[x].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for x in expected)
    for argument, value in defaults.items():
        assert parameters[argument].default == value


def test_names_of_one_function_bind_in_their_own_order() -> None:
    x, h0 = jnp.ones((1, 4, 1, 2)), jnp.zeros((1, 1, 3, 2))
    v = jnp.ones((1, 4, 1, 3))

    def run(*behind: Any) -> Any:
        return ops.fused_recurrent_retention(x, x, v, None, h0, True, *behind)

    o, state = jax.eval_shape(lambda: run(False, True, [0, 4]))
    assert (o.shape, state.shape) == (v.shape, h0.shape)
    _, state = jax.eval_shape(lambda: ops.chunk_retention(x, x, v, None, None, True, [0, 1, 4]))
    assert state.shape == (2, 1, 2, 3)
    assert "chunk_retention" in (ops.fused_recurrent_retention.__doc__ or "")


def test_hgrn_takes_packed_sequences_only_where_the_peer_does() -> None:
    assert "cu_seqlens" not in inspect.signature(ops.chunk_hgrn).parameters
    assert "cu_seqlens" in inspect.signature(ops.fused_recurrent_hgrn).parameters
    assert "cu_seqlens" not in inspect.signature(ops.chunk_momentum_delta_rule).parameters
