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
# # Write your own architecture
#
# **Claim.** An architecture is a rule that makes a system from tokens, a page of code. Engines,
# gradients, decoding, analysis and training follow from the system and are not written again.
#
# Our example is the *delta rule*. Linear attention writes into its memory by adding,
# $S_t = S_{t-1} + k_t v_t^\top$: two values under one key are read back as their sum. The delta
# rule first takes out what it finds there,
#
# $$S_t = S_{t-1} + \beta_t k_t (v_t - S_{t-1}^\top k_t)^\top
#       = (I - \beta_t k_t k_t^\top) S_{t-1} + \beta_t k_t v_t^\top, \qquad \|k_t\| = 1 .$$
#
# As a system: $\Lambda_t$ is the identity minus a matrix of rank one, which has a type of its own.

# %%
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import dsfjax
from dsfjax import analysis, nn, systems, tasks, training
from dsfjax.training import optimizer

plt.rcParams.update({"figure.dpi": 90, "axes.spines.top": False, "axes.spines.right": False})


class Params(NamedTuple):
    W_q: jax.Array
    W_k: jax.Array
    W_v: jax.Array
    w_beta: jax.Array


class Signals(NamedTuple):
    q: jax.Array
    k: jax.Array
    v: jax.Array
    beta: jax.Array


def delta_rule(*, d_model, d_state=16):
    """The delta rule with one head: a memory of d_state keys for values of width d_model."""

    def init(key):
        rows = (d_state, d_state, d_model, 1)
        keys = jax.random.split(key, 4)
        normal = [jax.random.normal(k, (n, d_model)) for k, n in zip(keys, rows, strict=True)]
        return Params(*(W / d_model**0.5 for W in normal))

    def signals(params, u):
        beta = jax.nn.sigmoid(u @ params.w_beta.T)
        return Signals(u @ params.W_q.T, u @ params.W_k.T, u @ params.W_v.T, beta)

    def assemble(params, s, *, reset=None):  # the System that acts on the values s.v
        k, beta = s.k[:, None], s.beta[:, None]  # (L, heads, n) and (L, heads, 1)
        k = k / jnp.sqrt(jnp.sum(k**2, axis=-1, keepdims=True) + 1e-6)
        return dsfjax.System(
            dsfjax.DiagonalPlusLowRank(jnp.zeros((1, 1, 1)), k, k, scale=beta),
            dsfjax.OuterInput(k, scale=beta),
            dsfjax.InnerOutput(s.q[:, None]),
            reset=reset,
            state_shape=(1, d_state, d_model),
        )

    def value_map(params):  # v = W_v u
        return params.W_v

    return systems.Architecture(init, signals, assemble, value_map)


L, d = 64, 8
arch = delta_rule(d_model=d)
params, u = arch.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (L, d))
system = arch.system(params, u)
print(dsfjax.explain(system))

# %% [markdown]
# ## Is it right?
#
# A loop over the formula above is the reference. Then every engine has to agree with it, and the
# one that cannot run this structure has to say why. `step` decodes token by token.

# %%
s = jax.tree.map(lambda x: np.asarray(x, np.float64), arch.signals(params, u))
S, reference = np.zeros((16, d)), []
for t in range(L):
    k = s.k[t] / np.sqrt(np.sum(s.k[t] ** 2) + 1e-6)
    S = S + s.beta[t] * np.outer(k, s.v[t] - S.T @ k)
    reference.append(S.T @ s.q[t])
reference = np.stack(reference)

for method in ("sequential", "chunked", "materialized", "associative"):
    try:
        y, _ = dsfjax.scan(system, u, method=method)
    except ValueError as error:
        assert method == "associative"
        print(error)
    else:
        error = np.abs(y - reference).max() / np.abs(reference).max()
        print(f"{method}: {error:.0e}")
        assert error < 1e-5

one_step, h = jax.jit(dsfjax.step), jnp.zeros((1, 16, d))
for t in range(L):
    y, h = one_step(dsfjax.slice_time(system, t, t + 1), u[t], h)
    assert np.abs(y - reference[t]).max() < 1e-5 * np.abs(reference).max()

# %% [markdown]
# ## What it forgets
#
# The eigenvalues of $I - \beta k k^\top$ are $1 - \beta$, once, and 1. So the delta rule forgets,
# at each step, in one direction only: the one it is about to write. To see what that is good for,
# write eight keys over and over, each time with new values, and read them all back.

# %%
moduli = np.sort(np.abs(analysis.eigenvalues(system))[:, 0], axis=1)
assert np.allclose(moduli[:, 0], 1 - s.beta[:, 0], atol=1e-4) and np.allclose(moduli[:, 1:], 1)

n, times = 8, 6
keys = jnp.tile(jnp.eye(n), (times, 1))
values = jax.random.normal(jax.random.key(2), (times * n, d))
memory = delta_rule(d_model=d, d_state=n)


def read_back(system):
    """What the state holds under each key after each round of writing, (times, n, d)."""
    states = dsfjax.scan(system, values, return_states=True)[2]
    return states[n - 1 :: n, 0]


written = Signals(q=keys, k=keys, v=values, beta=jnp.ones((times * n, 1)))
delta = memory.assemble(memory.init(jax.random.key(3)), written)
scalar = {"sum": 1.0, "decay 0.9": 0.9}
contest = {
    name: dsfjax.System(
        dsfjax.Scalar(jnp.log(jnp.full((1, 1), a))),
        dsfjax.OuterInput(keys[:, None]),
        dsfjax.InnerOutput(keys[:, None]),
        state_shape=(1, n, d),
    )
    for name, a in scalar.items()
} | {"delta rule": delta}
latest = values.reshape(times, n, d)

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3), layout="constrained")
left.hist(moduli.ravel(), bins=40)
left.set(title="|λ| of the delta rule on random tokens", xlabel="|λ|", yscale="log")
error = {}
for name, one in contest.items():
    wrong = jnp.linalg.norm(read_back(one) - latest, axis=(1, 2))
    error[name] = wrong / jnp.linalg.norm(latest, axis=(1, 2))
    right.plot(range(1, times + 1), error[name], "o-", label=name)
right.set(title="error of the latest value", xlabel="times that every key was written")
right.legend()
plt.show()
print({name: f"{e[-1]:.0e}" for name, e in error.items()})
assert error["delta rule"].max() < 1e-5 < 0.3 < min(error["sum"][-1], error["decay 0.9"][-1])

# %% [markdown]
# **What to see.** Left, all eigenvalues are 1 but one per step. Right, a sum mixes all values that
# a key ever had, and a decay fades the other keys with the old value; the delta rule returns the
# latest exactly.
#
# ## Does it matter once models learn?
#
# Registered under a name, the rule is an architecture like any other, in models, sweeps and the
# command line. The task: eight times a value is stored under one of four keys, and then all four
# are asked for. `train_step` is a pure function, so a whole training run is one `lax.scan`.

# %%
systems.register("delta_rule", delta_rule)
num_keys, num_values, num_writes = 4, 8, 8


def sample(key):
    """Pairs of a key and a value, then every key once; the answer is the latest value."""
    first, more, what, asked = jax.random.split(key, 4)
    more = jax.random.randint(more, (num_writes - num_keys,), 0, num_keys)
    k = jnp.concatenate([jax.random.permutation(first, num_keys), more])
    v = jax.random.randint(what, (num_writes,), 0, num_values)
    last = jnp.array(
        [jnp.max(jnp.where(k == i, jnp.arange(num_writes), 0)) for i in range(num_keys)]
    )
    queries = jax.random.permutation(asked, num_keys)
    tokens = jnp.concatenate([jnp.stack([k, num_keys + v], axis=1).ravel(), queries])
    positions = 2 * num_writes + jnp.arange(num_keys)
    return tasks.Example(tokens, positions, num_keys + v[last[queries]])


def learn(mixer, steps=400, batch_size=32):
    """Accuracy at every step of the training of a two-layer model."""
    config = nn.ModelConfig(mixer, num_keys + num_values, d_model=32, d_state=16, block="mamba")
    model = nn.build(config, nn.Surrounding(conv_width=4, conv_on=("q", "k", "v")))
    adamw = optimizer.build(training.OptimizerConfig(schedule="constant"), 5e-3)

    def advance(state, key):
        batch = jax.vmap(sample)(jax.random.split(key, batch_size))
        return training.train_step(state, batch, model=model, optimizer=adamw)

    @jax.jit
    def run(key):
        state = training.init_state(model, adamw, key)
        return jax.lax.scan(advance, state, jax.random.split(key, steps))[1]["accuracy"]

    return np.asarray(run(jax.random.key(0)))


fig, axis = plt.subplots(figsize=(6, 3), layout="constrained")
final = {}
for mixer in ("softmax_attention", "linear_attention", "delta_rule"):
    smooth = learn(mixer).reshape(-1, 20).mean(axis=1)
    axis.plot(20 * np.arange(1, len(smooth) + 1), smooth, label=mixer)
    final[mixer] = float(smooth[-1])
axis.set(xlabel="training step", ylabel="accuracy", ylim=(0, 1.05))
axis.legend()
plt.show()
assert final["delta_rule"] > 0.95 and final["delta_rule"] > final["linear_attention"] + 0.1

# %% [markdown]
# **What to see.** The architecture whose memory overwrites learns the task that overwrites, sooner
# than softmax attention, which has to find out the order of what it sees; linear attention does not
# get there. It has as much state as the delta rule: what differs is how it is written.
#
# **Exercise.** Let $\beta$ reach 2, by `2 * jax.nn.sigmoid`. Now $1 - \beta$ may be negative, and a
# state can flip its sign. Which question about a sequence of bits can one layer answer then, that
# none with eigenvalues in $[0, 1]$ can?
