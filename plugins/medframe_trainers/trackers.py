"""TensorBoard, Weights & Biases and MLflow: told what metrics.jsonl holds, where a recipe names them.

Each gets the recipe, once, and the numbers: no text of a sample, no console output, no code, no state of the machine.
Where they report to is theirs to know: WANDB_PROJECT, WANDB_MODE, MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, ...
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from medframe import Job, RecipeError

# What they tell their makers is settled when they are imported, and DeepSpeed imports mlflow unasked.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")


class Tracker(ABC):
    """Somewhere that the numbers of a run go."""

    @abstractmethod
    def __init__(self, job: Job) -> None:
        """Open it; on a resumed run, go on where the run was."""

    @abstractmethod
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Tell what was measured at an optimizer step."""

    @abstractmethod
    def close(self, failed: bool) -> None:
        """Tell that the training is over."""


class TensorBoard(Tracker):
    """Event files in OUT/tensorboard, for `tensorboard --logdir OUT`."""

    def __init__(self, job: Job) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Of a killed run, what follows the checkpoint will be trained again.
        after = job.begun_at + 1 if job.resume else None
        writer: Any = SummaryWriter  # parts of it have no annotations
        self._writer = writer(str(job.out / "tensorboard"), purge_step=after)
        if not job.resume:
            text = OmegaConf.to_yaml(OmegaConf.create(_recipe(job)))
            self._writer.add_text("recipe", "".join(f"    {line}\n" for line in text.splitlines()))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # left to itself it waits for two minutes, in which a run may be killed

    def close(self, failed: bool) -> None:
        self._writer.close()


class Wandb(Tracker):
    """A run of Weights & Biases, in the project WANDB_PROJECT, else `medframe`; its own files lie in OUT/wandb."""

    def __init__(self, job: Job) -> None:
        wandb: Any = importlib.import_module("wandb")
        known = _known_id(job, "wandb") or uuid.uuid4().hex[:8]
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "medframe"),
            name=job.out.name,
            id=known,
            resume="allow" if job.resume else None,
            config=_recipe(job),
            dir=str(job.out),
            # Left to itself it sends the output, the code, what is installed and what the machine is doing.
            settings=wandb.Settings(
                console="off",
                disable_git=True,
                disable_code=True,
                save_code=False,
                x_disable_machine_info=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
                host="",
                quiet=True,
            ),
        )
        _remember(job, "wandb", known)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)  # of a step that it has, on a resumed run, it takes nothing

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class MLflow(Tracker):
    """A run of MLflow, where MLFLOW_TRACKING_URI says."""

    def __init__(self, job: Job) -> None:
        mlflow: Any = importlib.import_module("mlflow")
        self._mlflow = mlflow
        known = _known_id(job, "mlflow")
        self._run_id: str = mlflow.start_run(run_id=known, run_name=None if known else job.out.name).info.run_id
        self._resumed, self._steps = known is not None, dict[str, set[int]]()
        if not known:
            _remember(job, "mlflow", self._run_id)
            parameters = list(_flat(_recipe(job)))
            for first in range(0, len(parameters), 100):  # it takes no more at once
                mlflow.log_params(dict(parameters[first : first + 100]))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        new = {name: value for name, value in values.items() if step not in self._had(name)}
        self._mlflow.log_metrics(new, step=step)

    def close(self, failed: bool) -> None:
        self._mlflow.end_run("FAILED" if failed else "FINISHED")

    def _had(self, name: str) -> set[int]:
        """The steps that a resumed run has told of before."""
        if self._resumed and name not in self._steps:
            history = self._mlflow.MlflowClient().get_metric_history(self._run_id, name)
            self._steps[name] = {metric.step for metric in history}
        return self._steps.get(name, set())


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": Wandb, "mlflow": MLflow}


def check(names: Sequence[str]) -> None:
    """ValueError for a name that is no tracker, and for one that is not installed; none is imported."""
    for name in names:
        if name not in TRACKERS:
            near = get_close_matches(name, TRACKERS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(TRACKERS)}; none: []"
            raise ValueError(f"report_to: there is no tracker {name!r}; {hint}")
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # without an origin it is a folder of that name, which wandb makes
            raise ValueError(f"report_to: {name} is not installed: pip install 'medframe[{name}]'")


@contextmanager
def tracked(job: Job, names: Sequence[str]) -> Iterator[Job]:
    """The job, with these trackers told of all that is logged until the block ends.

    RecipeError for one that cannot be opened. One that fails later is said and left out: a training does not end
    because of it.
    """
    trackers: dict[str, Tracker] = {}

    def log(step: int, of: int, values: Mapping[str, float]) -> None:
        job.log(step, of, values)
        for name, tracker in list(trackers.items()):
            try:
                tracker.log(step, values)
            except Exception as error:
                del trackers[name]
                _warn(name, error)

    failed = True
    try:
        for name in dict.fromkeys(names):
            try:
                trackers[name] = TRACKERS[name](job)
            except Exception as error:
                raise RecipeError(f"trainer.report_to: {name} cannot be opened: {_reason(error)}") from error
        yield replace(job, log=log) if names else job
        failed = False
    finally:
        for name, tracker in trackers.items():
            try:
                tracker.close(failed)
            except Exception as error:
                _warn(name, error)


def _warn(name: str, error: Exception) -> None:
    print(f"WARNING trainer.report_to: {name} is told nothing more: {_reason(error)}", file=sys.stderr)


def _reason(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]


def _recipe(job: Job) -> dict[str, Any]:
    """The recipe as the run wrote it; what it takes from the environment is not filled in."""
    file = job.out / "recipe.yaml"
    found: Any = OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else {}
    return dict(found)


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _flat(part, f"{prefix}{key}.")
    else:
        yield prefix.removesuffix("."), value


def _known_id(job: Job, name: str) -> str | None:
    """By what id the tracker knows the run that is resumed."""
    file = _ids(job)
    found = json.loads(file.read_text("utf-8")).get(name) if job.resume and file.is_file() else None
    return str(found) if found else None


def _remember(job: Job, name: str, run_id: str) -> None:
    file = _ids(job)
    known = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    file.write_text(json.dumps({**known, name: run_id}), "utf-8")


def _ids(job: Job) -> Path:
    return job.out / "trackers.json"
