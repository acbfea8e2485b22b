"""A made-up comparison: numbers of plausible size, drawn from fixed seeds, no model behind them."""

import dataclasses
from typing import Any

import numpy as np

from dsfjax.analysis import Cost, Phase
from dsfjax.aspects import Findings
from dsfjax.aspects.eigenvalues import MODULUS_BINS, Eigenvalues
from dsfjax.aspects.gradient_flow import Flow
from dsfjax.aspects.memory_curves import Memory
from dsfjax.aspects.phi_maps import PhiMap
from dsfjax.aspects.state_use import StateUse
from dsfjax.report.entries import Comparison, Curve, Entry
from dsfjax.tasks import MAE, MSE, Baseline
from dsfjax.training import MemberResult
from dsfjax.training.config import grid

LENGTH, STATES = 32, 48
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


def layer(finite: bool, signed: bool, rng: np.random.Generator) -> dict[str, Any]:
    """Name of an aspect to what it found in a layer."""
    age = np.arange(LENGTH)
    moduli = rng.random(len(MODULUS_BINS) - 1)
    phases = np.zeros(36)
    phases[18] = 1.0
    predicted = np.exp(-0.1 * age)
    measured = 0.8 * predicted * np.exp(0.1 * rng.standard_normal(LENGTH))
    lag = np.subtract.outer(age, age)
    kernel = np.where(lag >= 0, np.exp(-0.3 * np.maximum(lag, 0)) * rng.random(lag.shape), 0.0)
    if signed:
        kernel = kernel - 0.1 * np.where(lag >= 0, rng.random(lag.shape), 0.0)
    for query, value in PAIRS:
        kernel[query, value] += 1.0
    growing = 0.0 if finite else 0.25
    channels = 16 if finite else 1
    use = StateUse(np.exp(-0.2 * np.arange(STATES)), 12.0, 6.0)
    return {
        "eigenvalues": Eigenvalues(moduli / moduli.sum(), phases, np.sort(rng.random(5)), growing),
        "memory": Memory(
            survival=np.exp(-0.05 * age),
            half_life=7.0,
            mean_age=age / 2.0,
            state=measured if finite else None,
            output=measured / 2,
            predicted=predicted,
            correlation=0.9,
            ratio=0.8,
            until_asked=0.3,
        ),
        "state_use": use if finite else StateUse(None, None, None),
        "phi": PhiMap(kernel, channels, channels, PAIRS),
        "stability": Flow(
            growing=growing,
            exponents=np.linspace(-0.3, -0.05, 6),
            gradient=np.exp(0.1 * age) if finite else None,
            warnings=() if finite else ("head 0: the normaliser grows.",),
        ),
    }


def findings(mixer: str, rng: np.random.Generator) -> Findings:
    finite, signed = mixer != "softmax_attention", mixer in ("normalized_attention", "ssd")
    layers = [layer(finite, signed, rng) for _ in range(2)]
    return {name: tuple(own[name] for own in layers) for name in layers[0]}


def changed(found: Findings, aspect: str, **changes: Any) -> Findings:
    """The same findings, but for some fields of every layer of an aspect."""
    layers = tuple(dataclasses.replace(own, **changes) for own in found[aspect])
    return {**found, aspect: layers}


def curve(seed: int, final: float, rng: np.random.Generator) -> Curve:
    steps = np.arange(50, 1050, 50)
    accuracy = final / (1 + np.exp(-(steps - 300 - 60 * rng.standard_normal()) / 60))
    return Curve(seed, steps, np.clip(accuracy + 0.01 * rng.standard_normal(20), 0, 1))


def cost(flops: float, states: int) -> Cost:
    phase = Phase(flops, 10.0, 4 * flops, ())
    return Cost(LENGTH, 1, 50_000, 200_000, states, 12.5, phase, phase, phase)


def member(
    rate: float, seed: int, accuracy: float | None, status: str = "finished"
) -> MemberResult:
    (point,) = grid(learning_rates=[rate], seeds=[seed])
    return MemberResult(run="", member=0, mixer="", point=point, status=status, eval_score=accuracy)


def entry(mixer: str, final: float, bounds: str, rng: np.random.Generator) -> Entry:
    curves = tuple(curve(seed, final, rng) for seed in (0, 1, 2))
    accuracy = tuple(float(c.score[-1]) for c in curves)
    rates = (1e-3, 3e-3, 1e-2)
    states = 4096 if final > 0.6 else 64
    return Entry(
        mixer=mixer,
        learning_rate=3e-3,
        score_mean=float(np.mean(accuracy)),
        score_std=float(np.std(accuracy)),
        steps_to_90=400.0 if final > 0.9 else None,
        state_size=states,
        grows=mixer == "softmax_attention",
        num_params=int(rng.integers(40_000, 60_000)),
        tokens_per_second=float(rng.integers(100_000, 300_000)),
        bounds=bounds,
        outcomes=tuple(
            member(rate, c.seed, value if rate == 3e-3 else value / 2)
            for rate in rates
            for c, value in zip(curves, accuracy, strict=True)
        ),
        curves=curves,
        cost=cost(float(rng.integers(10_000, 20_000)), states),
        findings=findings(mixer, rng),
    )


def diverged(whole: Entry) -> Entry:
    """The same mixer, had all its members diverged after 100 steps."""
    curves = [Curve(c.seed, c.steps[:2], np.zeros(2), "diverged") for c in whole.curves]
    outcomes = [dataclasses.replace(o, status="diverged") for o in whole.outcomes]
    return dataclasses.replace(
        whole,
        score_mean=0.0,
        score_std=0.0,
        steps_to_90=None,
        curves=tuple(curves),
        outcomes=tuple(outcomes),
        findings=None,
    )


def of_errors(whole: Entry, floor: float) -> Entry:
    """The same mixer, judged by an error: the larger the accuracy was, the smaller it is."""
    curves = tuple(dataclasses.replace(c, score=floor + 1 - c.score) for c in whole.curves)
    finals = [float(c.score[-1]) for c in curves]
    outcomes = [
        dataclasses.replace(
            o, eval_score=floor + 1 - o.score, measured=(MSE, MAE), also={"mae": 0.5}
        )
        for o in whole.outcomes
    ]
    return dataclasses.replace(
        whole,
        score_mean=float(np.mean(finals)),
        score_std=float(np.std(finals)),
        steps_to_90=None,
        also={"mae": (0.5, 0.125)},
        curves=curves,
        outcomes=tuple(outcomes),
    )


def errors() -> Comparison:
    """A comparison by MSE, with MAE reported; of the last mixer every member diverged."""
    base = comparison()
    entries = [of_errors(each, 0.25) for each in base.entries]
    lost = diverged(entries[-1])
    curves = [dataclasses.replace(c, score=np.array([0.9, np.inf])) for c in lost.curves]
    means = {"score_mean": np.inf, "also": {"mae": (np.inf, 0.0)}}
    entries[-1] = dataclasses.replace(lost, curves=tuple(curves), **means)
    return Comparison(
        base.facts,
        None,
        1.0,
        tuple(entries),
        trivial="repeating the last value",
        linear=Baseline(0.5, "least squares"),
        measured=(MSE, MAE),
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
