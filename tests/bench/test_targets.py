"""Promises against measurements that are made up."""

import pytest

from dsfjax.bench.case import Case, cases
from dsfjax.bench.measure import Measurement
from dsfjax.bench.peers import PEERS as peers_of
from dsfjax.bench.targets import PEERS, TARGETS, Target, choices, verdicts, worst_errors

MIB = 2**20


def row(contestant: str, side: str, **own: object) -> Measurement:
    start = Measurement("ssd", "scalar", "sizes", contestant, side)
    defaults = {"value_error": 1e-7, "gradient_error": 2e-7, "forward_ms": 1.0}
    return start._replace(**(defaults | own))  # type: ignore[arg-type]


ROWS = [
    row("sequential", "ours", gradient_ms=9.0, temporary_bytes=50 * MIB, forward_ms=3.0),
    row(
        "chunked",
        "ours",
        gradient_ms=2.0,
        temporary_bytes=MIB,
        chosen=True,
        gradient_error=4e-7,
        compile_s=4.0,
    ),
    row("materialized", "ours", gradient_ms=1.0, temporary_bytes=MIB, forward_ms=0.5),
    row("autodiff", "baseline", gradient_ms=30.0, temporary_bytes=40 * MIB, compile_s=3.0),
    row("slow package", "peer", gradient_ms=80.0),
    row("fast package", "peer", gradient_ms=20.0),
    Measurement("ssd", "scalar", "sizes", "absent", "peer", skipped="not installed"),
]


@pytest.mark.parametrize(
    ("target", "ours", "theirs", "reached"),
    [
        (Target("", "ssd", "autodiff", 15), 2.0, 30.0, True),
        (Target("", "ssd", "autodiff", 15.1), 2.0, 30.0, False),
        (Target("", "ssd", "autodiff", 40, "temporary_bytes"), 1.0, 40.0, True),
        (Target("", "ssd", PEERS, 10), 2.0, 20.0, True),
        (Target("", "ssd", "autodiff", 1, "compile_s"), 4.0, 3.0, False),
        (Target("", "ssd", "sequential", 10, ours="materialized"), 1.0, 9.0, False),
    ],
)
def test_ratio_of_the_right_figures(
    target: Target, ours: float, theirs: float, reached: bool
) -> None:
    (verdict,) = verdicts(ROWS, [target])
    assert (verdict.ours, verdict.theirs, verdict.ratio) == (ours, theirs, theirs / ours)
    assert verdict.reached is reached
    if target.ours is None:
        assert verdict.errors == (1e-7, 4e-7)
    if target.against == PEERS:
        assert verdict.target.against == "fast package"


def test_what_did_not_run_is_named() -> None:
    absent, unknown = Target("", "ssd", "absent", 1), Target("", "ssd", "nobody", 1)
    engine = Target("", "ssd", "sequential", 1, ours="quantum")
    found = verdicts(ROWS, [absent, unknown, engine, Target("", "another case", "autodiff", 1)])
    assert [v.missing for v in found] == [
        "not installed",
        "'nobody' does not run here",
        "'quantum' does not run here",
    ]
    assert all(v.reached is None for v in found)


def test_targets_name_what_there_is() -> None:
    grid = {case.name: case for case in cases()}
    for target in TARGETS:
        case = grid[target.case]
        if target.against == PEERS:
            assert case.peers
        elif isinstance(case, Case):
            peers = [peers_of[name].title for name in case.peers]
            assert target.against in (*case.baselines, *peers, "sequential")
        assert target.of in Measurement._fields


def test_auto_beside_the_best() -> None:
    (choice,) = choices(ROWS)
    assert (choice.auto, choice.best) == ("chunked", "materialized")
    assert (choice.gradient, choice.forward) == (2.0, 2.0)
    assert not choice.within
    best = [r._replace(chosen=r.contestant == "materialized") for r in ROWS]
    assert choices(best)[0].within
    assert choices([ROWS[1], ROWS[3]]) == []  # nothing to choose from


def test_worst_errors_are_ours() -> None:
    peer = row("wrong package", "peer", value_error=1.0, gradient_error=1.0)
    worst = worst_errors([*ROWS, peer])
    assert worst is not None
    assert worst[1].contestant == "chunked"
    assert worst_errors([peer]) is None
