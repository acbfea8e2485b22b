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
# # Train, compare, decide
#
# **Claim.** "Which architecture is best?" has an answer for a task, a length and a budget: train
# the candidates in the same way, with every learning rate and several seeds, and put beside the
# accuracy what each of them costs to run.
#
# The task is associative recall: three keys with their values in a sequence of 16 tokens, then the
# keys again. Four mixers get the same model around them.

# %%
import tempfile

import matplotlib.pyplot as plt

from dsfjax import analysis, nn, tasks, training

plt.rcParams.update({"figure.dpi": 90, "axes.spines.top": False, "axes.spines.right": False})

task = tasks.mqar.MQARConfig(vocab_size=32, seq_len=16, num_kv_pairs=3)


def config(mixer):
    """Two layers of a mixer, and the grid of runs."""
    model = nn.ModelConfig(
        mixer, task.vocab_size, d_model=32, d_state=16, block="mamba", surroundings="practice"
    )
    return training.TrainConfig(
        task,
        model,
        training.OptimizerConfig(warmup_steps=20),
        batch_size=32,
        steps=400,
        eval_every=50,
        eval_examples=256,
        learning_rates=(3e-3, 1e-2),
        seeds=(0, 1),
        stop_at=0.98,
        stop_when="one_rate",
    )


mixers = ("softmax_attention", "normalized_attention", "linear_attention", "ssd")
configs = {mixer: config(mixer) for mixer in mixers}

# %% [markdown]
# ## Train
#
# `sweep` compiles one program per shape. The learning rates and seeds are its members and train
# together, on all devices there are. What it writes can be killed and resumed; here it goes into a
# temporary folder. From the shell, the same is `dsfjax compare`.

# %%
with tempfile.TemporaryDirectory() as folder:
    rows = training.sweep(configs, folder)
    members = training.read_results(folder)

print(f"{'mixer':22s} accuracy        best rate   steps to 90 %")
for row in rows:
    mean, std = row["accuracy_mean"], row["accuracy_std"]
    steps = "-" if row["steps_to_90"] is None else f"{row['steps_to_90']:.0f}"
    print(f"{row['mixer']:22s} {mean:6.1%} ± {std:5.1%}  {row['best_learning_rate']:9g}   {steps}")
accuracy = {row["mixer"]: row["accuracy_mean"] for row in rows}
assert accuracy["softmax_attention"] > 0.9

# %%
fig, axes = plt.subplots(1, 4, figsize=(11, 2.8), sharex=True, sharey=True, layout="constrained")
for axis, mixer in zip(axes, mixers, strict=True):
    for member in members:
        if member.run == mixer:
            steps = [line["step"] for line in member.metrics]
            color = f"C{configs[mixer].learning_rates.index(member.point.learning_rate)}"
            label = f"rate {member.point.learning_rate:g}" if member.point.seed == 0 else None
            curve = [line["eval_accuracy"] for line in member.metrics]
            axis.plot(steps, curve, color, label=label)
    axis.axhline(1 / task.num_kv_pairs, color="k", ls=":")
    axis.set(title=mixer, xlabel="step", ylim=(0, 1.05))
axes[0].set_ylabel("accuracy")
axes[0].legend(fontsize=8)
plt.show()

# %% [markdown]
# **What to see.** Each line is a seed, each colour a learning rate; a run ends when one rate has
# solved the task. Dotted: naming any of the three values. At the smaller rate all four look alike,
# and none has learnt to recall: a comparison at one rate would have compared that rate. The
# verdict holds for this budget: whether more steps teach it to the others is not shown here.
#
# ## What each costs
#
# `cost` counts operations and bytes per token from shapes alone, nothing is run; so the same call
# works for the 16 tokens of this task and for lengths that nobody here could train at.

# %%
lengths = [16, 64, 256, 1024, 4096]
models = {mixer: nn.build(configs[mixer].model) for mixer in mixers}
carried = {mixer: [analysis.state_size(models[mixer], n) for n in lengths] for mixer in mixers}


def operations(model, length):
    """Operations for one token more after so many."""
    decode = analysis.cost(model, length, phases=("decode",)).decode
    assert decode is not None
    return decode.flops


fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3), layout="constrained")
for mixer in mixers:
    left.plot(lengths, carried[mixer], "o-", label=mixer)
    right.plot(lengths, [operations(models[mixer], n) for n in lengths], "o-")
left.set(xscale="log", yscale="log", xlabel="tokens so far", title="numbers carried along")
right.set(xscale="log", yscale="log", xlabel="tokens so far", title="operations for one token more")
left.legend(fontsize=8)
plt.show()

# %% [markdown]
# **What to see.** A cache grows with what it has read; the other three (normalized and linear
# attention coincide) pay the same for the millionth token as for the first.
#
# ## Decide
#
# Of the mixers within five points of the best, take the one that carries least. Such a rule is
# written down before looking, and its answer depends on the length.

# %%
best = max(accuracy.values())
good = [mixer for mixer in mixers if accuracy[mixer] >= best - 0.05]
for i, length in enumerate(lengths):
    winner = min(good, key=lambda mixer, i=i: carried[mixer][i])
    sizes = ", ".join(f"{mixer} carries {carried[mixer][i]:,}" for mixer in good)
    print(f"{length:4d} tokens: {winner}, as {sizes}")
assert "softmax_attention" in good and winner != "softmax_attention"
assert carried[winner][-1] < 0.02 * carried["softmax_attention"][-1]

# %% [markdown]
# **What to see.** On this task a learnt normaliser brings linear attention up to softmax, which is
# the proposal of the paper behind this library (arXiv:2405.15731). Whoever has a thousand tokens
# to remember pays for it with a hundredth of the memory; whether recall of *more pairs* survives
# that is another experiment.
#
# **Exercise.** Run it: double `num_kv_pairs` and `seq_len`, then give each mixer the `d_state` with
# which it carries as much as the cache (`analysis.match_size` finds it). Who wins now?
