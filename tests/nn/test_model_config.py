"""What a model cannot be is refused before anything is compiled, with the nearest that can."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from dsfjax import nn
from dsfjax.analysis import num_parameters, state_size
from tests.checks import unchecked
from tests.nn.small import config


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"mixer": "sdd"}, "unknown mixer 'sdd'; did you mean 'ssd'"),
        ({"mixer": "softmax"}, "unknown mixer 'softmax'; .*Known: softmax_attention"),
        ({"surroundings": "papr"}, "unknown surroundings 'papr'; did you mean 'paper'"),
        ({"block": "pre_norm"}, "unknown block 'pre_norm'; did you mean 'prenorm'"),
        ({"norm": "layers"}, "unknown norm 'layers'; did you mean 'layer'"),
        ({"head": "untie"}, "unknown head 'untie'; did you mean 'untied'"),
        ({"pooling": "maen"}, "unknown pooling 'maen'; did you mean 'mean'"),
        ({"init": "author"}, "unknown init 'author'; did you mean 'authors'"),
        ({"method": "chunk"}, "unknown method 'chunk'; did you mean 'chunked'"),
        ({"vocab_size": 0}, "expected vocab_size >= 1, got 0"),
        ({"d_model": -4}, "expected d_model >= 1, got -4"),
        ({"num_layers": 0}, "expected num_layers >= 1"),
        ({"d_state": 0}, "expected d_state >= 1, got 0"),
        ({"num_heads": 0}, "expected num_heads >= 1, got 0"),
        ({"max_length": -1}, "expected max_length >= 0, got -1"),
        ({"num_classes": -1}, "expected num_classes >= 0, got -1"),
        ({"head": "classifier"}, "a classifier needs num_classes > 0"),
        ({"num_classes": 3}, "only a classifier has classes"),
        ({"embed_dropout": 1.0}, "expected 0 <= embed_dropout < 1, got 1.0"),
        ({"residual_dropout": -0.1}, "expected 0 <= residual_dropout < 1"),
        ({"residual_scale": 0.0}, "expected residual_scale > 0"),
        ({"logit_cap": -1.0}, "expected logit_cap > 0, or 0 for none"),
        ({"mlp": "glu"}, "unknown mlp 'glu'; did you mean"),
        ({"attention_dropout": 0.1, "method": "chunked"}, "'chunked' never forms"),
    ],
)
def test_impossible_configs(own: dict[str, Any], message: str) -> None:
    with unchecked(), pytest.raises(ValueError, match=message):
        nn.ModelConfig(**{"mixer": "ssd", "vocab_size": 11, **own})


@pytest.mark.parametrize("mixer", ["linear_attention", "ssd", "rg_lru"])
def test_heads_that_do_not_divide(mixer: str) -> None:
    with pytest.raises(ValueError, match=r"= 8 is not divisible by 3; .* it is 2\."):
        nn.build(config(mixer, num_heads=3))


def size_of(mixer: str, **own: Any) -> int:
    return num_parameters(nn.build(config(mixer, **own)))


def test_options_of_the_architecture() -> None:
    with pytest.raises(TypeError, match="ssd has no option 'num_group'; did you mean 'num_groups'"):
        nn.build(config("ssd", options=(("num_group", 2),)))
    model = nn.build(config("normalized_attention", options=(("normalizer", "softplus"),)))
    assert model.init is not None
    sizes = [size_of("ssd", options=(("num_groups", g),)) for g in (1, 2)]
    assert sizes[1] - sizes[0] == 2 * 2 * 3 * 8


@pytest.mark.parametrize(
    ("mixer", "options", "states"),
    [
        ("ssd", (("d_state", 5),), 5),
        ("ssd", (("ssd.d_state", 5),), 5),
        ("ssd", (("ssd.d_state", 5), ("d_state", 2)), 5),
        ("ssd+s6", (("s6.d_state", 5),), 4),
        ("ssd+s6", (("s6.d_state", 5), ("d_state", 7)), 6),
    ],
)
def test_options_come_before_sizes(mixer: str, options: Any, states: int) -> None:
    """Those of one mixer before those of all, whatever their order, before those of the config."""
    for given in (options, options[::-1]):
        model = nn.build(config(mixer, d_state=3, num_layers=2, options=given))
        assert state_size(model, 9) == 2 * 8 * states
    made = config("softmax_attention", options=(("num_heads", 4),), num_heads=2)
    arch = nn.architecture(made)
    assert jax.eval_shape(arch.init, jax.random.key(0)).W_q.shape == (4, 3, 8)


def test_each_layer_is_told_its_own() -> None:
    """Lightning decays slower in later layers; an option is for all of them."""

    def decays(**own: Any) -> list[float]:
        model = nn.build(config(**{"mixer": "lightning", "num_layers": 3, **own}))
        params, ids = model.init(jax.random.key(0)), jnp.arange(2)
        found: Any = model.systems(params, ids)
        return [float(system.A.log_a.min()) for system, _ in found]

    expected = [-(2.0**-4) * (1 - i / (2 + 1e-5) + 1e-5) for i in range(3)]
    assert decays() == pytest.approx(expected)
    assert decays(mixer="ssd+lightning+ssd")[1] == pytest.approx(expected[1])
    assert decays(options=(("layer", 3),)) == pytest.approx([expected[2]] * 3)


def test_sizes_that_an_architecture_does_not_have_are_ignored() -> None:
    sizes = {size_of("qlstm", d_state=n, num_heads=h) for n, h in ((3, 1), (5, 2))}
    assert len(sizes) == 1


def test_init_of_the_architecture_follows_the_config() -> None:
    for init, zero in (("published", False), ("authors", True)):
        params = nn.build(config("ssd", init=init)).init(jax.random.key(0))
        core = params["blocks"]["block_0"]["mixer"]["core"]
        assert bool((core["bias_dt"] == 0).all()) == zero
