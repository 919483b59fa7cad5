"""The contract of a trainer: a short run that is proven, changes the model, is logged and can be gone on with."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pytest

from medframe.checkpoints import checkpoints
from medframe.checkpoints import step as step_of
from medframe.plugins import Kind
from medframe.testing.component import ComponentContract

if TYPE_CHECKING:
    import torch

    from medframe.recipe import Recipe

RECIPE = """\
seed: 7
compare: 0
backbone: {{use: {backbone}, weights: tiny}}
data: {{consult: {{use: chatmed-consult, path: {rows}}}}}
held_out: {{rows: 2}}
prompt: {{use: chatmed}}
batching: {{kind: auto, tokens: 96}}
trainer: {trainer}
"""


class TrainerContract(ComponentContract):
    """A trainer, tried with a few examples on a tiny model."""

    kind: ClassVar[Kind] = "trainer"
    backbone: ClassVar[str] = "llama"
    """The backbone, by its name in recipes, whose tiny model is trained."""
    resumes: ClassVar[bool] = True
    """Whether it makes checkpoints. `fields` must then be such that a log follows the first of them."""
    _finished: ClassVar[Recipe | None] = None

    def test_the_run_is_proven(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        """The run ends, and what it saved computes the same in a fresh process."""
        out = self._run(tmp_path_factory).out
        assert json.loads((out / "manifest.json").read_text("utf-8"))["state"] == "finished"
        assert (out / "adapter").is_dir() != (out / "model").is_dir(), "leave either adapter/ or model/"
        left = sorted(path.name for path in out.glob("**/*") if path.name.endswith((".saving", ".old")))
        assert not left, f"{left} lie in the run directory"

    def test_the_model_has_learnt(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        import torch

        recipe = self._run(tmp_path_factory)
        before, after = recipe.backbone.load_model().state_dict(), _trained(recipe, recipe.out)
        changed = [name for name in before if not torch.equal(before[name], after[name])]
        assert changed, "no weight has changed"
        assert all(torch.isfinite(tensor).all() for tensor in after.values())

    def test_the_tokenizer_is_the_same(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        from medframe.fingerprint import tokenizer_fingerprint
        from medframe.trained import trained

        recipe = self._run(tmp_path_factory)
        saved = trained(recipe.backbone, recipe.out).load_tokenizer()
        assert tokenizer_fingerprint(saved) == tokenizer_fingerprint(recipe.backbone.load_tokenizer())

    def test_metrics_are_logged(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        file = self._run(tmp_path_factory).out / "metrics.jsonl"
        lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        assert any("loss" in line for line in lines), "nobody logged a loss: job.log(step, of, {'loss': ...})"
        assert all(isinstance(line["step"], int) and line["step"] >= 0 for line in lines)
        steps = [line["step"] for line in lines]
        assert steps == sorted(steps), f"steps are logged out of order: {steps}"
        numbers = [value for line in lines for name, value in line.items() if name != "step"]
        assert all(math.isfinite(value) for value in numbers)

    def test_steps_are_foretold(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        """`steps` gives the number of the last step that was logged, or None."""
        from medframe.prepare import prepare

        recipe = self._run(tmp_path_factory)
        foretold = recipe.trainer.steps(prepare(recipe).train)
        if foretold is None:
            pytest.skip("steps() is None: the trainer cannot tell beforehand")
        lines = (recipe.out / "metrics.jsonl").read_text("utf-8").splitlines()
        assert json.loads(lines[-1])["step"] == foretold

    def test_an_interrupted_run_comes_to_the_same_end(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        if not self.resumes:
            pytest.skip("resumes = False")
        recipe = self._run(tmp_path_factory)
        again = tmp_path_factory.mktemp("interrupted")
        with _interruptible(), suppress(KeyboardInterrupt):
            self._fit(recipe, again, None)
        checkpoint = next(reversed(checkpoints(again)), None)
        assert checkpoint is not None, "no checkpoint in checkpoints/: choose other `fields`, or say resumes = False"
        ended = (again / "adapter").is_dir() or (again / "model").is_dir()
        assert not ended, "no log came between the first checkpoint and the end: choose other `fields`"
        steps = self._fit(recipe, again, checkpoint)
        assert all(step > step_of(checkpoint) for step in steps), (
            f"{checkpoint.name} is not gone on from: its steps are {steps}"
        )
        straight, resumed = _trained(recipe, recipe.out), _trained(recipe, again)
        assert straight.keys() == resumed.keys()
        apart = max(float((straight[name] - resumed[name]).abs().max()) for name in straight)
        assert apart < 1e-5, f"interrupted and resumed, the weights differ by {apart:.1e} from those of one run"

    def _run(self, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
        """The recipe, run to its end once for all tests of the class."""
        from medframe.compose import compose
        from medframe.recipe import build
        from medframe.run import run

        cls = type(self)
        if cls._finished is None:
            folder = tmp_path_factory.mktemp("trainer")
            file = folder / "recipe.yaml"
            named = isinstance(self.component, str)
            section = {"use": self.component, **self.fields} if named else {"use": "lora"}
            rows = json.dumps(str(_rows(folder)))
            text = RECIPE.format(backbone=self.backbone, rows=rows, trainer=json.dumps(section))
            file.write_text(text, "utf-8")
            recipe = build(compose(file, [f"out={folder / 'run'}"]))
            if not named:
                recipe = replace(recipe, trainer=self.make())
            with _one_thread():
                run(recipe, say=lambda line: None)
            cls._finished = recipe
        return cls._finished

    def _fit(self, recipe: Recipe, out: Path, resume: Path | None) -> list[int]:
        """Train alone, without the frame's proofs; not resumed, interrupted at the first log after a checkpoint.

        Returns the steps whose loss was logged.
        """
        from medframe.prepare import job, prepare

        steps: list[int] = []

        def log(step: int, of: int, values: Mapping[str, float]) -> None:
            if "loss" in values:
                steps.append(step)
            if resume is None and checkpoints(out):
                signal.raise_signal(signal.SIGINT)

        recipe = replace(recipe, out=out)
        with _one_thread():
            recipe.trainer.fit(job(recipe, prepare(recipe), log, resume))
        return steps


def _rows(folder: Path) -> Path:
    """A file of a few consultations."""
    parts = ("头", "胃", "腰", "腿", "手", "眼", "耳", "牙", "背", "颈", "膝", "肩")
    rows = [{"query": f"{part}疼怎么办？", "response": f"请到医院查一查{part}。"} for part in parts]
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return file


def _trained(recipe: Recipe, out: Path) -> dict[str, torch.Tensor]:
    from medframe.trained import trained

    return trained(recipe.backbone, out).load_model().state_dict()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also where the tests' own process was started to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread here and in child processes: sums in one order, and far quicker for a tiny model on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OMP_NUM_THREADS", "1")
            yield
    finally:
        torch.set_num_threads(before)
