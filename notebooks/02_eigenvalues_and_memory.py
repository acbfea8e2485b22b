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
# # Eigenvalues and memory
#
# **Claim.** What a model can remember is written in the eigenvalues of its transition $\Lambda_t$,
# token by token, and training moves them to where the task needs them.
#
# What a token leaves in the state after $\tau$ more steps is multiplied by
# $\lambda_{s+1} \cdots \lambda_{s+\tau}$. We train two small models to recall the values of three
# keys out of a sequence of 16 tokens, an SSD (Mamba-2), whose $\lambda$ lies in $(0, 1)$ by
# construction, and normalized attention, where $\lambda_t = \eta_{t-1}/\eta_t$ may be anything. Two
# seeds each are trained in one compiled program; we keep the better one.

# %%
import tempfile

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from dsfjax import analysis, nn, tasks, training

plt.rcParams.update({"figure.dpi": 90, "axes.spines.top": False, "axes.spines.right": False})

task = tasks.mqar.MQARConfig(vocab_size=32, seq_len=16, num_kv_pairs=3)


def train(mixer, **sizes):
    """A model, fresh parameters for it, and trained ones."""
    config = training.TrainConfig(
        task,
        nn.ModelConfig(
            mixer, task.vocab_size, d_model=32, block="mamba", surroundings="practice", **sizes
        ),
        training.OptimizerConfig(warmup_steps=20),
        batch_size=32,
        steps=800,
        eval_every=50,
        eval_examples=256,
        learning_rates=(1e-2,),
        seeds=(0, 1),
        stop_at=0.95,
    )
    with tempfile.TemporaryDirectory() as folder:
        training.train(config, folder)
        run = training.load(folder)
    accuracies = [member["eval_accuracy"] for member in run.result["members"]]
    best = int(np.argmax(accuracies))
    print(f"{mixer}: {accuracies[best]:.0%} of the queries after {run.result['steps']} steps")
    assert accuracies[best] > 0.9
    model = nn.build(config.model)
    fresh, trained = model.init(jax.random.key(0)), jax.tree.map(lambda x: x[best], run.params)
    return model, {"untrained": fresh, "trained": trained}


models = {
    "ssd": train("ssd", d_state=16, num_heads=4),
    "normalized_attention": train("normalized_attention", d_state=16),
}
tokens = tasks.mqar.batch(jax.random.key(9), task, 16).inputs

# %% [markdown]
# ## Where the eigenvalues are
#
# `collect_systems` hands the systems of all layers to a function, for one sequence after the other,
# and stacks what it returns. Here that function is `eigenvalues`, which knows nothing about the
# architecture. At the first token there is no $\eta_{t-1}$, hence the `nan` that we drop.


# %%
def eigenvalues(model, params):
    """|λ| of all sequences, layers, tokens and heads of a model, as one long array."""

    def read(layers):
        return [jnp.abs(analysis.eigenvalues(system)) for system, _ in layers]

    found = jax.jit(lambda params: nn.collect_systems(model, params, tokens, read))(params)
    moduli = np.concatenate([np.ravel(x) for x in found])
    return moduli[~np.isnan(moduli)]


moduli = {
    (name, when): eigenvalues(model, params)
    for name, (model, both) in models.items()
    for when, params in both.items()
}
fig, axes = plt.subplots(1, 2, figsize=(10, 3), layout="constrained")
for axis, name, bins in zip(
    axes, models, (np.linspace(0, 1, 41), np.geomspace(2**-6, 2**6, 41)), strict=True
):
    for when in ("untrained", "trained"):
        axis.hist(moduli[name, when], bins, alpha=0.6, label=when)
    axis.set(title=name, xlabel="|λ|", yticks=[])
axes[1].set_xscale("log", base=2)
axes[0].legend()
plt.show()

constants = {when: -1 / np.log(moduli["ssd", when]).mean() for when in ("untrained", "trained")}
for when, steps in constants.items():
    print(f"ssd, {when}: time constant of {steps:.0f} steps")
assert moduli["ssd", "trained"].max() <= 1
assert constants["trained"] > 2 * constants["untrained"]
assert (moduli["normalized_attention", "trained"] > 1).mean() > 0.2

# %% [markdown]
# **What to see.** SSD starts with decays of all kinds, and training pushes them towards 1: to
# answer a query it must keep a pair over up to 14 steps. Attention has about as many eigenvalues
# above 1 as below. It is not unstable, though: the product of the ratios from $s$ to $t$ is
# $\eta_s/\eta_t$, in which everything between has cancelled.
#
# ## How long a product lasts
#
# The *horizon* of a token is the number of steps until the product of the $\lambda$ that follow
# falls below $\varepsilon$. Sequences end before many do, so the curve is that of Kaplan and Meier,
# in which what is cut off counts for as long as it was seen.


# %%
def lasting(model, params):
    """Share of products that are still above 1/2 after τ steps, by layer."""

    def read(layers):
        return [analysis.count_horizons(analysis.horizons(system, 0.5)) for system, _ in layers]

    layers = jax.jit(lambda params: nn.collect_systems(model, params, tokens, read))(params)
    means = [jax.tree.map(lambda x: x.mean(axis=(0, 1)), counts) for counts in layers]
    return [analysis.survival(counts) for counts in means]


model, both = models["ssd"]
fig, axis = plt.subplots(figsize=(6, 3), layout="constrained")
for when, style in (("untrained", "--"), ("trained", "-")):
    curves = lasting(model, both[when])
    for layer, curve in enumerate(curves):
        axis.step(range(len(curve)), curve, f"C{layer}{style}", label=f"layer {layer + 1}, {when}")
    shares = " and ".join(f"{curve[8]:.0%}" for curve in curves)
    print(f"{when}: {shares} of the products (layers 1 and 2) have not halved after 8 steps")
    assert (min(c[8] for c in curves) > 0.7) == (when == "trained")
axis.set(xlabel="steps τ", ylabel="share above 1/2", ylim=(0, 1.05), title="ssd")
axis.legend()
plt.show()

# %% [markdown]
# **What to see.** Before training, half of what enters has halved within six steps; afterwards
# nearly everything lasts until it is asked for.
#
# ## Prediction and measurement
#
# Does the product of the eigenvalues say what really happens to a token? `retention` removes one
# token as a *value*, runs the system, and follows its trace in the state and in the output.

# %%
mark = 1  # the value of the first pair
fig, axes = plt.subplots(1, 2, figsize=(10, 3), layout="constrained")
for axis, (name, (model, both)) in zip(axes, models.items(), strict=True):
    system, u = jax.jit(model.systems)(both["trained"], tokens[0])[1]
    trace = jax.jit(analysis.retention)(system, u, jnp.array([mark]))
    agreement = analysis.agreement(trace.state, trace.predicted)
    assert agreement.correlation > 0.999 and abs(agreement.spread - 1) < 1e-3
    axis.plot(trace.predicted[0, :, 0], "k", lw=4, alpha=0.3, label="product of |λ|")
    axis.plot(trace.state[0, :, 0], "C0--", label="trace in the state")
    axis.plot(trace.output[0, :, 0], "C1o", ms=4, label="trace in the output")
    axis.set(title=f"{name}, layer 2, head 1", xlabel="step", yscale="log")
axes[0].legend()
plt.show()

# %% [markdown]
# **What to see.** In the state the prediction is exact, because a scalar $\Lambda_t$ shrinks all
# directions alike. The output is another matter: there $C_t$ decides, from step to step, how much
# of the token is read. Eigenvalues say what *can* be read, queries what *is*.
#
# **Exercise.** Train `s6` in the place of `ssd`. It has one eigenvalue per channel and state, so
# the root mean square of their products is only an estimate of what happens to a token. How good is
# the agreement now (`analysis.agreement`), and for which tokens is it worst?
