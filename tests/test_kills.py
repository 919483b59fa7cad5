"""A run of two processes under DeepSpeed, with dropout, comes back unharmed however it is killed; kills.py by itself

kills at random, and as often as one likes.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
from kills import RANDOM, Kill, Killer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")

PLAN = [
    ("start-up", "rank 1"),
    ("save", "rank 0"),
    ("save", "supervisor"),
    ("end", "witness"),
]
"""What the run is doing, and what of it is killed; test_launch.py kills a rank that trains."""


def test_a_run_killed_four_times_comes_to_the_metrics_and_weights_of_one_left_alone(tmp_path: Path) -> None:
    draw = random.Random(5)
    kills = [Kill(phase, draw.random(), draw.uniform(0, 0.01), (victim,)) for phase, victim in PLAN]
    report = Killer(tmp_path / "killed", 2, [*RANDOM["lora"], "trainer.deepspeed=zero2"], print).go(kills)
    assert report.problems == []
    assert report.difference == 0
    assert report.finished > 0
    assert report.kills[1:] == PLAN[1:]  # the first goes by the clock
    assert [victim for _, victim in report.kills] == [victim for _, victim in PLAN]
