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
# # Open a published model
#
# **Claim.** A layer of a published model is a System, so its attention map is exact, whatever the
# layer is made of; and what a common shortcut shows in its place is another map.
#
# `dsfjax.open` reads a folder in the published format. Here it is a tiny Qwen3-Next with random
# weights, which comes with the tests: two layers of the gated delta rule, then one of gated softmax
# attention. With weights that were trained nothing below changes but the numbers.

# %%
import dataclasses

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import dsfjax
from dsfjax import analysis

plt.rcParams.update({"figure.dpi": 90, "axes.spines.top": False, "axes.spines.right": False})

model = dsfjax.open("../tests/golden/checkpoints/qwen3_next")
print(model)

# %% [markdown]
# The classical prompt for copying: the same eight tokens twice.

# %%
half = np.array([11, 37, 5, 52, 23, 8, 44, 19])
ids = np.concatenate([half, half])
layers = model.systems(ids)
for i, layer in enumerate(layers):
    for system, u in layer:
        print(f"layer {i}: {type(system).__name__}, tokens {u.shape}")

# %% [markdown]
# ## The map is exact
#
# $\Phi_{t,s}$ is the weight with which token $s$ enters output $t$. For the gated delta rule,
# $\Phi_{t,s} = q_t^\top A_t \cdots A_{s+1} b_s$ with $A_t = a_t (I - β_t k_t k_t^\top)$: what a key
# wrote is removed when the key comes again. Φ times the values is what the layer computes.

# %%
((system, u),) = layers[0]
phi = dsfjax.materialize(system)
heads = phi.shape[0]
values = u.reshape(len(ids), heads, -1)
by_map = jnp.einsum("hts,shp->thp", phi, values).reshape(len(ids), -1)
y, _ = dsfjax.scan(system, u)
difference = float(jnp.abs(by_map - y).max() / jnp.abs(y).max())
print(f"Φ times the values, against the layer: {difference:.1e}")
assert difference < 1e-5

# %% [markdown]
# ## The shortcut is another map
#
# A layer of this kind is often shown as gated linear attention, with $A_t = a_t$: the removal is
# dropped. In terms of the System that is one part set to zero.

# %%
assert isinstance(system, dsfjax.System) and isinstance(system.A, dsfjax.DiagonalPlusLowRank)
plain = dataclasses.replace(system, A=dataclasses.replace(system.A, w=0 * system.A.w))
shortcut = dsfjax.materialize(plain)
off = float(jnp.linalg.norm(shortcut - phi) / jnp.linalg.norm(phi))
print(f"the map without the removal of keys differs by {off:.0%} of the norm")
assert off > 0.1

figure, axes = plt.subplots(1, 2, figsize=(7, 3.3), sharey=True)
scale = float(jnp.abs(phi[0]).max())
for ax, kernel, title in zip(axes, (phi[0], shortcut[0]), ("exact", "no removal"), strict=True):
    ax.imshow(kernel, cmap="RdBu_r", vmin=-scale, vmax=scale)
    ax.set_xticks(range(len(ids)), [str(i) for i in ids], rotation=90, fontsize=7)
    ax.set_yticks(range(len(ids)), [str(i) for i in ids], fontsize=7)
    ax.set_title(f"layer 0, head 0: {title}")
figure.tight_layout()

# %% [markdown]
# ## Take one token from the memory of a layer
#
# `scale_write` sets what step 3 writes into the state to zero. The output of the changed System
# less the old one, added where the layer runs, gives the logits that the model would have had:
# exactly, with all that later layers make of it.

# %%
step = 3
changed = analysis.scale_write(system, step, 0.0)
nudges = jax.tree.map(jnp.zeros_like, [list(layer) for layer in model.passes(ids).gradients])
nudges[0][0] = dsfjax.scan(changed, u)[0] - y
logits = model.logits(ids)
without = model.apply(model.params, ids, nudges=[tuple(layer) for layer in nudges])
moved = jnp.abs(jax.nn.softmax(without) - jax.nn.softmax(logits)).sum(-1) / 2
print("steps before it do not move:", float(moved[:step].max()))
assert float(moved[:step].max()) == 0 and float(moved[step:].max()) > 0
plt.figure(figsize=(6, 2.2))
plt.bar(range(len(ids)), moved)
plt.xlabel("step t")
plt.ylabel("change of p(next token)")
plt.title(f"token {step} taken from what layer 0 remembers")
plt.tight_layout()

# %% [markdown]
# ## How long the layers remember
#
# The eigenvalues of $A_t$ of the recurrent layers, and the state that they use.

# %%
for i in (0, 1):
    ((system, u),) = layers[i]
    moduli = np.abs(np.asarray(analysis.eigenvalues(system)))
    moduli = moduli[np.isfinite(moduli)]
    low, middle, high = np.quantile(moduli, [0.05, 0.5, 0.95])
    print(f"layer {i}: |λ| {middle:.2f} ({low:.2f} to {high:.2f})")
    assert high <= 1 + 1e-5

# %% [markdown]
# **Exercise.** Open the tiny RWKV-7 next to it (`fla_rwkv7`), whose transition is
# $\mathrm{diag}(w_t) + b_t a_t^\top$, and drop its second term. How much of its map is left? Then
# write the page of both: `dsfjax analyze FOLDER FOLDER --ids 11 37 5 …`.
