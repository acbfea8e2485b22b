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
# # How much state does softmax need?
#
# **Claim.** Softmax attention is a linear system with infinitely many states. How many of them a
# finite one needs depends on a single number, the largest score $R = \max |q^\top k|$. Training
# makes it large, and then a key–value cache is the smaller memory.
#
# The exponential is a power series, and its partial sums are inner products of finitely many
# features, the monomials of $q$ and of $k$:
#
# $$e^{q^\top k} \approx \sum_{r=0}^{P} \frac{(q^\top k)^r}{r!} = \varphi_P(q)^\top \varphi_P(k),
# \qquad n = \dim \varphi_P = \binom{m + P}{P} .$$
#
# With Lagrange's remainder $\varepsilon = e^R R^{P+1}/(P+1)!$, the output of the finite system
# differs from that of attention by at most $2 e^R \varepsilon \max_s \|v_s\|$.

# %%
import dataclasses
import math
import tempfile
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import dsfjax
from dsfjax import analysis, nn, systems, tasks, training

plt.rcParams.update({"figure.dpi": 90, "axes.spines.top": False, "axes.spines.right": False})

L, m, p = 64, 4, 4  # tokens, features of q and k, value channels
q, k = jax.random.normal(jax.random.key(0), (2, L, 1, m))
v = jax.random.normal(jax.random.key(1), (L, p))
largest = jnp.abs(jnp.einsum("tha,sha->ts", q, k)).max()


def attention(R):
    """Softmax attention of random queries and keys, whose largest score is R."""
    return dsfjax.KernelSystem(q * (R / largest), k, num_channels=p)


# %% [markdown]
# ## Error against order
#
# `truncate_kernel` makes the finite system, and `truncation_error` measures how far it is from
# attention without writing its features out.


# %%
@partial(jax.jit, static_argnums=1)
def errors(R, P):
    """Largest errors of kernel and output over all steps, each with its bound."""
    found = analysis.truncation_error(attention(R), v, P)
    rounding = analysis.truncation_rounding(R, P)
    kernel_bound = analysis.lagrange_bound(R, P) + rounding
    norm = found.value_norm.max()
    output_bound = analysis.output_bound(R, P, norm) + (2 * jnp.exp(R) * rounding + 1e-5) * norm
    return found.kernel.max(), kernel_bound, found.output.max(), output_bound


y, _ = dsfjax.scan(dsfjax.truncate_kernel(attention(1.0), 6), v)
exact, _ = dsfjax.scan(attention(1.0), v)
assert jnp.isclose(jnp.linalg.norm(y - exact, axis=1).max(), errors(1.0, 6)[2], atol=1e-5)

radii, orders = jnp.array([0.5, 1.0, 2.0, 4.0, 8.0]), (0, 2, 4, 6, 8, 12, 16, 20, 24)
found = np.array([[errors(R, P) for P in orders] for R in radii])  # (radii, orders, 4)
assert (found[:, :, 0] <= found[:, :, 1]).all() and (found[:, :, 2] <= found[:, :, 3]).all()

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
needed = []
for i, R in enumerate(radii):
    left.plot(orders, found[i, :, 2], f"C{i}o-", ms=4, label=f"R = {R:g}")
    left.plot(orders, found[i, :, 3], f"C{i}:")
    enough = found[i, :, 2] < 0.01 * jnp.linalg.norm(v, axis=1).max()
    P = orders[int(np.argmax(enough))]
    needed.append(math.comb(m + P, P) * p)
left.set(yscale="log", ylim=(1e-7, 1e3), xlabel="order P", ylabel="error of the output")
left.legend(fontsize=8)
right.plot(radii, needed, "ko-")
right.axhline(L * (m + p), color="C3", ls="--")
right.annotate(f"key–value cache of {L} tokens", (0.5, 1.15 * L * (m + p)), color="C3")
right.set(xscale="log", yscale="log", xlabel="largest score R", ylabel="N for an error of 1 %")
right.minorticks_off()
right.set_xticks(radii, [f"{R:g}" for R in radii])
plt.show()
assert needed[-1] > 100 * needed[0]

# %% [markdown]
# **What to see.** Left, measured errors (points) and their bounds, rounding included (dotted): the
# order has to outgrow $R$ before anything is gained. Right, the price of that in states. Attention
# over small scores is a small system; over large ones a cache of all tokens is the smaller memory.
#
# ## Other features of the same size
#
# Taylor's are not the only features. Random ones (FAVOR+) approximate the kernel on average, and
# elu + 1 of a random projection, linear attention, does not try. `finite_states` compares them
# at equal state size.

# %%
fig, axes = plt.subplots(1, 2, figsize=(10, 3), sharey=True, layout="constrained")
for axis, R in zip(axes, (1.0, 8.0), strict=True):
    lines = analysis.finite_states(attention(R), v, (2, 6, 12), key=jax.random.key(2))
    for name, label in (("taylor", "Taylor"), ("positive", "random"), ("elu", "elu + 1")):
        own = [line for line in lines if line.features == name]
        sizes, output = [x.state_size for x in own], [x.output_error for x in own]
        axis.plot(sizes, output, "o-", label=label)
        if name == "taylor" and R == 1:
            assert output[0] < 0.1 * min(x.output_error for x in lines if x.features != name)
    axis.set(xscale="log", yscale="log", xlabel="state size N", title=f"R = {R:g}")
axes[0].set_ylabel("error of the output")
axes[0].legend()
plt.show()

# %% [markdown]
# **What to see.** For small scores nothing comes near the power series. For large ones all three
# fail at sizes one would pay for, each in its own way.
#
# ## What training does to R
#
# Random scores are one thing. Now a model learns to recall three values of 16 tokens, then its
# softmax is replaced, with the *same* parameters, by the finite system of order $P$. A new
# architecture takes a few lines, and a model around it answers the same questions.

# %%
task = tasks.mqar.MQARConfig(vocab_size=32, seq_len=16, num_kv_pairs=3)
softmax = nn.ModelConfig(
    "softmax_attention", task.vocab_size, 32, d_state=m, block="mamba", surroundings="practice"
)
config = training.TrainConfig(
    task,
    softmax,
    training.OptimizerConfig(warmup_steps=20),
    batch_size=32,
    steps=800,
    eval_every=50,
    eval_examples=256,
    learning_rates=(1e-2,),
    seeds=(0, 1),
    stop_at=0.98,
    stop_when="one_rate",
)
with tempfile.TemporaryDirectory() as folder:
    training.train(config, folder)
    run = training.load(folder)
best = int(np.argmax([member["eval_accuracy"] for member in run.result["members"]]))
model, params = nn.build(softmax), jax.tree.map(lambda x: x[best], run.params)
batch = tasks.mqar.batch(jax.random.key(5), task, 128)


def truncated(P):
    """The model with Taylor's features of order P in the place of softmax."""

    def build(*, d_model, d_state):
        arch = systems.get("softmax_attention", d_model=d_model, d_state=d_state)

        def assemble(*signals, **own):
            return dsfjax.truncate_kernel(arch.assemble(*signals, **own), P)

        return arch._replace(assemble=assemble)

    name = f"softmax_to_order_{P}"
    if name not in systems.names():
        systems.register(name, build)
    around = nn.Surrounding(conv_width=4, conv_on=("q", "k", "v"))  # as in "practice"
    return nn.build(dataclasses.replace(softmax, mixer=name), around)


def accuracy(model):
    """Share of the queries that the trained parameters answer."""
    logits = jax.jit(jax.vmap(partial(model.apply, params)))(batch.inputs)
    answers = jnp.take_along_axis(logits.argmax(axis=-1), batch.query_positions, axis=1)
    return float((answers == batch.targets).mean())


def scores(params):
    """The largest score of each layer over the batch."""

    def read(layers):
        return [analysis.truncation_error(system, u, 0).radius.max() for system, u in layers]

    found = jax.jit(lambda params: nn.collect_systems(model, params, batch.inputs, read))(params)
    return np.array([x.max() for x in found])


before, after = scores(model.init(jax.random.key(0))), scores(params)
print(f"largest score: {before.max():.1f} before training, {after.max():.1f} after")
assert after.max() > 3 * before.max()

# %%
orders = (0, 2, 4, 8, 12)
answered = [accuracy(truncated(P)) for P in orders]
sizes = [analysis.state_size(truncated(P), task.seq_len) for P in orders]
exact, cache = accuracy(model), analysis.state_size(model, task.seq_len)
fig, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
axis.plot(sizes, answered, "o-", label="Taylor")
for P, size, share in zip(orders, sizes, answered, strict=True):
    axis.annotate(f"P = {P}", (size, share), (4, -12), textcoords="offset points", fontsize=8)
axis.plot(cache, exact, "C3*", ms=12, label="softmax and its cache")
axis.set(xscale="log", xlabel="numbers carried to the next token", ylabel="accuracy", ylim=(0, 1.1))
axis.legend(loc="lower right")
plt.show()
assert exact > 0.95 and answered[0] < 0.7 and answered[-1] > exact - 0.02
assert next(size for size, a in zip(sizes, answered, strict=True) if a > exact - 0.02) > cache

# %% [markdown]
# **What to see.** To point at one token, the model has made its scores many times larger. It still
# answers all queries as a finite system, long before Lagrange's bound would promise it, but with
# many times the numbers of the cache, which holds the whole sequence.
#
# **Exercise.** The cache grows with the sequence, the finite system does not. At which length are
# they equal for $P = 4$ and $P = 8$? Then train with `d_state=8` in the place of 4: the scores
# become smaller. Does that help?
