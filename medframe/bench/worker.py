"""A process that trains some steps of a recipe, a step whenever it is its turn, and tells how it went."""

from __future__ import annotations

import json
import socket
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from medframe import quiet
from medframe import world as worlds
from medframe.backbone import shapes
from medframe.bench import memory
from medframe.bench.ceiling import ceiling, synchronise
from medframe.bench.turns import TURNS
from medframe.errors import RunError
from medframe.flops import Load, load_of
from medframe.flops import work as work_of
from medframe.live import Live, alive
from medframe.manifest import machine
from medframe.prepare import check_context, job, prepare
from medframe.recipe import Recipe
from medframe.trainer import Job

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from medframe.batch import MicroBatch


@dataclass(frozen=True)
class Step:
    """Steps that were taken in one turn."""

    steps: int
    seconds: float
    load: Load


class Enough(BaseException):
    """As many steps as were asked for have been taken, or the trainer has come to its end."""


def work(recipe: Recipe, folder: Path, steps: int) -> None:
    """Train `steps` optimizer steps, and leave what was measured in `folder`, a file for each rank.

    Nothing is saved and no held-out loss is measured. Before each step rank 0 waits for its turn, at the port that
    the folder names; the others wait for it, as a step is taken together.
    """
    quiet.libraries()
    out = folder / "out"
    world = worlds.join(recipe.patience, out)
    recipe = replace(recipe, out=out)
    with world.first_then_others():
        prepared = prepare(recipe)
    check_context(recipe, prepared)
    clock = Clock(folder / TURNS if world.rank == 0 else None, steps)
    prepared.train.seen = clock.saw
    told = job(recipe, replace(prepared, held_out=None), clock.logged, kind=_Job, clock=clock)
    with suppress(Enough):
        recipe.trainer.fit(told)
    found = clock.found() | {
        "kind": prepared.train.kind,
        "reason": prepared.train.reason,
        "whole": recipe.trainer.steps(prepared.train, world.size),
        "device": machine(),
    }
    if world.rank == 0:
        torch.set_float32_matmul_precision(clock.float32)
        found |= _needed(recipe)
    (folder / f"rank-{world.rank}.json").write_text(json.dumps(found), "utf-8")
    world.leave()
    world.part()


class Clock:
    """When each optimizer step began and ended, what was in it, and what it took of memory."""

    def __init__(self, turns: Path | None, steps: int) -> None:
        self._steps = steps
        self._taken: list[tuple[int, float, int]] = []
        """(optimizer steps done, seconds that the turn took, micro-batches fetched), at the end of each turn."""
        self._loads: list[Load] = []
        self._step = -1
        self._by_progress = False
        self._since = 0.0
        self._turns = None
        self.float32 = "highest"
        """How torch was set to multiply float32 while it trained."""
        self.loading = 0
        """The most that was held until the model was loaded and proven."""
        self.peak = 0
        self.tensors: int | None = None
        """The most that tensors took in one further step."""
        self._live: Live | None = None
        if turns:
            self._turns = socket.create_connection(("127.0.0.1", int(turns.read_text())))

    def saw(self, batch: MicroBatch) -> None:
        self._loads.append(load_of(batch))

    def loaded(self, model: PreTrainedModel) -> None:
        self.loading = memory.peak()
        memory.restart()

    def progressed(self, step: int) -> None:
        # In the first micro-batch after a step, where the trainer tells of each: a step has passed between two.
        self._by_progress = True
        self._at(step)

    def logged(self, step: int, of: int, values: Mapping[str, float]) -> None:
        if not self._by_progress:  # else told by `progressed`, and more often
            self._at(step)

    def _at(self, step: int) -> None:
        if step <= self._step:
            return
        self._step = step
        synchronise()
        self.float32 = torch.get_float32_matmul_precision()
        if self._live:
            self._live.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self.tensors = self._live.peak
            raise Enough
        self._taken.append((step, time.perf_counter() - self._since, len(self._loads)))
        if step - self._taken[0][0] >= self._steps:
            self.peak = memory.peak()
            if memory.on_gpu():
                self.tensors = self.peak
                raise Enough
            # One more step, in which every tensor is counted: that takes time.
            self._live = Live()
            for tensor in alive():
                self._live.count(tensor)
            self._live.__enter__()  # type: ignore[no-untyped-call]
        if self._turns:
            self._turns.sendall(b".")
            if not self._turns.recv(1):
                raise RunError("bench: the process that gives the turns has gone")
        self._since = time.perf_counter()

    def found(self) -> dict[str, Any]:
        if len(self._taken) < 2:
            raise RunError("bench: the training ended before a step could be measured; raise max_steps or save_steps")
        if not self._loads:
            raise RunError("bench: no micro-batch was built in this process; set dataloader_num_workers to 0")
        turns = list(zip(self._taken, self._taken[1:], strict=False))
        each = round(statistics.median((b[2] - a[2]) / (b[0] - a[0]) for a, b in turns))
        first = 1 if self._by_progress else 0
        taken = []
        for (before, *_), (after, seconds, _) in turns:
            part = self._loads[before * each + first : after * each + first]
            taken.append(asdict(Step(after - before, seconds, sum(part, Load()))))
        return {
            "steps": taken,
            "loading": self.loading,
            "peak": self.peak or memory.peak(),
            "tensors": self.tensors,
        }


@dataclass(kw_only=True)
class _Job(Job):
    """A job of which nothing is kept."""

    clock: Clock

    def suit(self, model: PreTrainedModel) -> None:
        super().suit(model)
        self.clock.loaded(model)

    def progress(self, step: int) -> None:
        super().progress(step)
        self.clock.progressed(step)

    @contextmanager
    def saving(self, name: str) -> Iterator[Path]:
        """What was trained is not kept: the measurement ends where the trainer would save."""
        raise Enough
        yield self.out

    def finish(self, model: Any) -> None:
        raise Enough


def _needed(recipe: Recipe) -> dict[str, Any]:
    """The operations that the model asks for, the precision that it computes in, and what the device reaches in it."""
    model = shapes(recipe.backbone)
    footprint = recipe.trainer.footprint(model, recipe.backbone)
    dtype = (footprint and footprint.computes) or str(model.dtype).removeprefix("torch.")
    asked = footprint and work_of(footprint.model)
    return {"work": asked and [asdict(work) for work in asked], "dtype": dtype, "ceiling": ceiling(dtype)}
