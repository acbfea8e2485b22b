"""A made-up comparison: numbers of plausible size, drawn from fixed seeds, no model behind them."""

import numpy as np

from dsfjax.report.comparison import Comparison, Curve, Entry, Probe

LENGTH = 32
PAIRS = ((9, 1), (14, 5), (21, 3), (30, 7))
MIXERS = {
    "softmax_attention": (0.998, "unbounded (η_{t−1}/η_t)"),
    "normalized_attention": (0.991, "unbounded: ratio of normalisers"),
    "ssd": (0.97, "(0, 1)"),
    "s6": (0.93, "(0, 1)"),
    "linear_attention": (0.81, "unbounded: ratio of normalisers"),
    "rg_lru": (0.52, "(0, 1)"),
    "qlstm_reversed": (0.41, "(0, 1]"),
    "qlstm": (0.33, "(0, 1)"),
}


def probe(mixer: str, rng: np.random.Generator) -> Probe:
    if "attention" in mixer:
        moduli = np.exp(0.2 * rng.standard_normal(2000))
    else:
        moduli = 1 / (1 + np.exp(-2 - 1.5 * rng.standard_normal(2000)))
    lag = np.subtract.outer(np.arange(LENGTH), np.arange(LENGTH))
    kernel = np.where(lag >= 0, np.exp(-0.3 * np.maximum(lag, 0)) * rng.random(lag.shape), 0.0)
    if mixer in ("normalized_attention", "ssd"):
        kernel = kernel - 0.1 * np.where(lag >= 0, rng.random(lag.shape), 0.0)
    for query, value in PAIRS:
        kernel[query, value] += 1.0
    return Probe(moduli, kernel, 16 if mixer in ("s6", "rg_lru") else 1, PAIRS)


def curve(seed: int, final: float, rng: np.random.Generator) -> Curve:
    steps = np.arange(50, 1050, 50)
    accuracy = final / (1 + np.exp(-(steps - 300 - 60 * rng.standard_normal()) / 60))
    return Curve(seed, steps, np.clip(accuracy + 0.01 * rng.standard_normal(20), 0, 1))


def entry(mixer: str, final: float, bounds: str, rng: np.random.Generator) -> Entry:
    curves = tuple(curve(seed, final, rng) for seed in (0, 1, 2))
    accuracy = tuple(float(c.accuracy[-1]) for c in curves)
    return Entry(
        mixer=mixer,
        learning_rate=float(rng.choice([1e-3, 3.1622e-3])),
        accuracy_mean=float(np.mean(accuracy)),
        accuracy_std=float(np.std(accuracy)),
        steps_to_90=400.0 if final > 0.9 else None,
        state_size=4096 if final > 0.6 else 64,
        num_params=int(rng.integers(40_000, 60_000)),
        tokens_per_second=float(rng.integers(100_000, 300_000)),
        bounds=bounds,
        num_diverged=0,
        num_members=6,
        curves=curves,
        probe=probe(mixer, rng),
    )


def comparison(mixers: dict[str, tuple[float, str]] = MIXERS) -> Comparison:
    rng = np.random.default_rng(0)
    facts = {
        "Task": "MQAR, L = 32, 4 key–value pairs, vocabulary 64",
        "Model": "2 layers, d = 64, 64 states per head",
        "Training": "1000 steps of 64 examples, AdamW",
        "Device": "cpu (4 cores)",
        "Versions": "dsfjax 0.1.0, jax 0.10.2, Python 3.11.9",
    }
    entries = tuple(entry(name, final, bounds, rng) for name, (final, bounds) in mixers.items())
    return Comparison(facts, 2 / 64, 1 / 4, entries)
