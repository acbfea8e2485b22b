# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # One system, many models
#
# **Claim.** Attention, state space models and gated RNNs are one object: a linear system whose
# matrices change from token to token,
#
# $$h_t = \Lambda_t h_{t-1} + B_t u_t, \qquad y_t = C_t h_t + D_t u_t .$$
#
# An *architecture* is a rule that makes these matrices from the tokens. Below, the eight
# architectures of the paper read the same 48 tokens. In the code $\Lambda$ is called `A`, and
# its *type* says what structure it has.

# %%
import time
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import dsfjax
from dsfjax import analysis, systems

plt.rcParams.update({"figure.dpi": 90, "axes.spines.top": False, "axes.spines.right": False})

L, d = 48, 16
u = jax.random.normal(jax.random.key(0), (L, d))


def build(name):
    """An architecture of width d with eight states per head, and random parameters for it."""
    own = {"d_state": 8} if "d_state" in systems.options(name) else {}
    arch = systems.get(name, d_model=d, **own)
    return arch, arch.init(jax.random.key(1))


paper = ("softmax_attention", "linear_attention", "normalized_attention", "s6", "ssd")
paper += ("qlstm", "qlstm_reversed", "rg_lru")
zoo = {}
for name in paper:
    arch, params = build(name)
    zoo[name] = arch.system(params, u)
    print(f"{name:22s} Λ is {arch.traits.structure:24s} N = {arch.traits.state}")

# %% [markdown]
# ## Three ways to the same output
#
# `scan` runs a system with whichever engine suits its structure. `to_dense` writes out the matrices
# of the equation above, so a NumPy loop can do the same. `materialize` multiplies everything out
# into the kernel $\Phi$ with $y = \Phi u$, which for attention is the attention map; but every
# system has one. The three must agree, and they do.


# %%
@jax.jit
def look(system):
    """Outputs, the kernel from tokens to outputs (L, d, L, d), and where each step reads (L, L)."""
    y, _ = dsfjax.scan(system, u)
    phi = dsfjax.materialize(system, full=True)
    return y, phi, analysis.attention_map(system).weights[0]


def loop(system):
    """The equation above, as it stands."""
    dense = dsfjax.to_dense(system)
    A, B, C, tokens = (np.asarray(x, np.float64) for x in (dense.A, dense.B, dense.C, u))
    D = np.zeros((1, d, d)) if dense.D is None else np.asarray(dense.D)
    D = np.broadcast_to(D, (L, d, d))
    h, y = np.zeros(A.shape[-1]), []
    for t in range(L):
        h = A[t] @ h + B[t] @ tokens[t]
        y.append(C[t] @ h + D[t] @ tokens[t])
    return np.stack(y)


fig, axes = plt.subplots(2, 4, figsize=(10, 5.2), layout="constrained")
for axis, (name, system) in zip(axes.flat, zoo.items(), strict=True):
    y, phi, weights = look(system)
    assert jnp.abs(jnp.einsum("tosd,sd->to", phi, u) - y).max() < 1e-5 * jnp.abs(y).max(), name
    if isinstance(system, dsfjax.System):  # softmax attention has no finite matrices
        assert np.abs(loop(system) - y).max() < 1e-5 * jnp.abs(y).max(), name
    axis.imshow(weights, cmap="magma_r", vmin=0, vmax=0.4)
    axis.set_title(name, fontsize=10)
fig.supxlabel("step that is read")
fig.supylabel("step that reads")
plt.show()

# %% [markdown]
# **What to see.** Each row shows from where one step reads. Attention reads anywhere; a state space
# model may, as long as its decays are near 1; the gates of the two qLSTMs let go in a few steps.
# How fast a model forgets is the subject of the next notebook.
#
# ## Lemma 1: linear attention is a system, in two coordinates
#
# Attention whose weights are $\varphi(q_t)^\top \psi(k_s)/\eta_t$ is the system with
# $\Lambda_t = (\eta_{t-1}/\eta_t) I$: so the paper writes it. The library stores the same thing as
# $\Lambda_t = I$, with the division by $\eta_t$ at read-out. The change of coordinates
# $T_t = I/\eta_t$ leads from one to the other, and `find_coordinates` finds it by itself.

# %%
arch, params = build("linear_attention")
signals = arch.signals(params, u)
features = analysis.elu_features  # φ = ψ = elu + 1
lemma = jax.jit(analysis.lemma_1)(features(signals.q), features(signals.k), signals.v)
print(f"attention minus system: {lemma.unnormalized:.1e} as stored, {lemma.paper:.1e} as written")
assert max(lemma.unnormalized, lemma.paper) < 1e-5

stored, written = zoo["linear_attention"], analysis.normalized(zoo["linear_attention"])
T = analysis.find_coordinates(stored, written)
log_eta = analysis.normalizers(stored).log
assert T.log_t is not None and jnp.allclose(T.log_t, -log_eta, atol=1e-4)

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3), layout="constrained")
for label, system, style in (
    (r"$\Lambda_t = I$", stored, "-"),
    (r"$\Lambda_t = (\eta_{t-1}/\eta_t) I$", written, "--"),
):
    y, _, h = jax.jit(partial(dsfjax.scan, return_states=True))(system, u)
    left.plot(jnp.linalg.norm(h[..., :d].reshape(L, -1), axis=1), style, label=label)
    right.plot(y[:, 0], style, label=label)
left.set(title="size of the state", xlabel="step", yscale="log")
right.set(title="first output channel", xlabel="step")
left.legend()
plt.show()

# %% [markdown]
# **What to see.** Left, two different states: one grows with the tokens it has summed, the other is
# an average of them. Right, one output. A state has no meaning without its coordinates; $\Phi$ has.
#
# ## A state space model is attention, too
#
# Now take SSD, the model of Mamba-2, with $T_t = I/(a_1 \cdots a_t)$, the inverse product of its
# decays. What is left has $\Lambda = I$: linear attention without a normaliser, whose keys grow.

# %%
ssd = zoo["ssd"]
log_a = analysis.log_eigenvalues(ssd).log_modulus[:, :, 0]  # one per step and head
log_t = -jnp.cumsum(log_a, axis=0)
attention = dsfjax.rescale(ssd, log_t)
found = jax.jit(analysis.equivalent)(ssd, attention)
left = jnp.abs(analysis.log_eigenvalues(attention).log_modulus).max()
print(f"largest |log λ| that is left {left:.0e}, Φ differs by {found.kernel:.0e}")
assert found.equal and left < 1e-5

fig, axis = plt.subplots(figsize=(6, 2.8), layout="constrained")
axis.plot(jnp.exp(log_t))
axis.set(title="what T does to the keys of SSD", xlabel="step", ylabel="factor", yscale="log")
plt.show()

# %% [markdown]
# **What to see.** The factor grows exponentially. On paper the two forms are equal; on a computer a
# few thousand tokens of this would overflow. So no engine of the library ever forms the product: it
# works with differences of logarithms, which are never positive.
#
# ## Engines
#
# As $\Phi$ does not depend on how it is computed, an engine is free to go step by step, to combine
# steps in a tree (`associative`), to use matrix products within chunks (`chunked`), or to write out
# $\Phi$. `explain` says which one `scan` picks.

# %%
arch = systems.get("ssd", d_model=64, d_state=64)
params = arch.init(jax.random.key(2))
lengths = [256, 2048]
reference = {}
fig, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
for method in ("sequential", "associative", "chunked", "materialized"):
    seconds = []
    for length in lengths:
        tokens = jax.random.normal(jax.random.key(3), (length, 64))

        def loss(params, tokens=tokens, method=method):
            return jnp.sum(dsfjax.scan(arch.system(params, tokens), tokens, method=method)[0] ** 2)

        gradient = jax.jit(jax.grad(loss))
        found = jnp.concatenate([x.ravel() for x in jax.block_until_ready(gradient(params))])
        expected = reference.setdefault(length, found)
        assert jnp.abs(found - expected).max() < 1e-4 * jnp.abs(expected).max(), method
        begin = time.perf_counter()
        for _ in range(3):
            jax.block_until_ready(gradient(params))
        seconds.append((time.perf_counter() - begin) / 3)
    axis.plot(lengths, seconds, "o-", label=method)
axis.set(xlabel="L", ylabel="seconds", xscale="log", yscale="log", title="SSD, loss and gradient")
axis.minorticks_off()
axis.set_xticks(lengths, [str(length) for length in lengths])
axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()
print(dsfjax.explain(arch.system(params, tokens)))

# %% [markdown]
# **What to see.** The same gradients at very different prices. $\Phi$ is cheap for a short sequence
# and costs $L^2$; a tree of single steps moves far too much memory; chunks are made for training.
#
# **Exercise.** Write SSD as *normalized* attention: a `dsfjax.System` with
# `A = dsfjax.Scalar(jnp.zeros((1, 1)))`, the `C` of `ssd`, and a `dsfjax.GivenNormalizer`. Which
# $\eta_t$, and which keys? `analysis.find_coordinates` tells you whether you are right, and for any
# other pair of `zoo` the `reason` why there is no $T_t$.
