"""A run of the Hugging Face Trainer on medframe's micro-batches; what `lora` and `full` share."""

from __future__ import annotations

import json
import math
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from medframe import Job, RecipeError
from medframe_trainers.loss import mean_loss, token_loss
from medframe_trainers.stop import Stop
from medframe_trainers.stream import Share, Stream
from medframe_trainers.watch import Watch

if TYPE_CHECKING:
    from medframe_trainers.settings import Settings

_WINDOW = "window.json"
"""The file of a checkpoint that holds what the Trainer itself would not bring back."""


def arguments(job: Job, settings: Settings) -> TrainingArguments:
    """What the Trainer is told. To be made before the model is loaded: from here on, ZeRO-3 spreads what is loaded.

    RecipeError for settings that transformers refuses, or that cannot be shared by the processes of the job.
    """
    per_step = per_step_of(job, settings)
    given = settings.arguments() | {"gradient_accumulation_steps": per_step // job.world}
    # Left to itself, the Trainer refuses bf16 where there is no GPU, though a CPU computes in it.
    given.setdefault("use_cpu", not torch.accelerator.is_available())
    try:
        args = TrainingArguments(
            output_dir=str(job.out / "checkpoints"),
            per_device_train_batch_size=1,  # one item of the stream is a whole micro-batch
            seed=job.seed,
            remove_unused_columns=False,
            report_to=[],
            disable_tqdm=True,
            save_strategy="steps",
            eval_strategy="steps" if job.held_out else "no",
            eval_on_start=job.held_out is not None and job.resume is None,
            logging_nan_inf_filter=False,
            dataloader_pin_memory=torch.cuda.is_available(),
            **given,
        )
    except (TypeError, ValueError) as error:
        raise _refused(error) from error
    # One process drives one device: the Trainer would split each micro-batch over all GPUs it sees.
    args._n_gpu = min(1, args.n_gpu)
    return args


def per_step_of(job: Job, settings: Settings) -> int:
    """Micro-batches in an optimizer step, over all processes: a resumed run keeps the number it began with."""
    per_step = settings.gradient_accumulation_steps or job.world
    if job.resume:
        per_step = int(json.loads((job.resume / _WINDOW).read_text("utf-8"))["per_step"])
    if per_step % job.world:
        raise RecipeError(
            f"trainer.gradient_accumulation_steps: the {per_step} micro-batches of a step cannot be shared evenly by "
            f"{job.world} processes; make it a multiple of {job.world}"
        )
    return per_step


def fit(
    job: Job,
    model: Any,
    args: TrainingArguments,
    settings: Settings,
    prove: Callable[[Path], None],
) -> None:
    """Train the model in place; checkpoints of it lie in job.out/checkpoints, each proven by `prove(folder)`.

    Ctrl-C and SIGTERM save a checkpoint and raise KeyboardInterrupt and Terminated.
    """
    per_step = per_step_of(job, settings)
    length = settings.max_steps * per_step if settings.max_steps else None
    stream = Stream(job.train, settings.num_train_epochs, length)
    args.max_steps = math.ceil(len(stream) / per_step)
    try:
        trainer = _Trainer(job, model, args, settings, stream, per_step, prove)
        # Made anew when training starts; made here too, so that wrong settings are found before.
        trainer.create_optimizer_and_scheduler(args.max_steps)
    except (TypeError, ValueError) as error:
        raise _refused(error) from error
    with trainer.stop:
        trainer.train(resume_from_checkpoint=str(job.resume) if job.resume else None)
    if job.held_out and trainer.evaluated_at != trainer.state.global_step:
        trainer.evaluate()
    # Accelerate leaves autocast around the model's forward; what is saved computes in its own precision.
    trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)


class _Trainer(Trainer):
    """The Hugging Face Trainer with medframe's batches, loss, log and checkpoints."""

    def __init__(
        self,
        job: Job,
        model: Any,
        args: TrainingArguments,
        settings: Settings,
        stream: Stream,
        per_step: int,
        prove: Callable[[Path], None],
    ) -> None:
        super().__init__(
            model=model,
            args=args,
            train_dataset=Share(stream, per_step, job.rank, job.world),
            eval_dataset=stream if job.held_out else None,  # asked for; `evaluate` reads job.held_out itself
            data_collator=lambda items: items[0],
        )
        self.job = job
        self.keep = settings.keep
        self.prove = prove
        self.evaluated_at = -1
        self.stop = Stop()
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        # Have the Trainer count the labels of the whole optimizer step and hand the number to compute_loss,
        # which divides by it: nothing is left to scale.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self._stream, self._per_step = stream, per_step
        self._watch = Watch(settings.max_grad_norm_growth, settings.fp16)
        self._micro_batches: list[tuple[int, torch.Tensor]] = []
        """(number in the stream, loss) of those of the step that is being taken."""
        self._ended = job.resume and step_of(job.resume)
        """The last step that `_end_step` looked at."""
        self._since, self._supervised, self._tokens = time.perf_counter(), 0, 0.0
        # The losses since the last logged step. The Trainer's own sum does not survive a resume.
        self._losses, self._logged_at = 0.0, 0
        if job.resume:
            window = json.loads((job.resume / _WINDOW).read_text("utf-8"))
            self._losses, self._logged_at = window["losses"], window["logged_at"]

    def get_train_dataloader(self) -> DataLoader[Any]:
        # Accelerate would share out the micro-batches in its own way, and repeat some to make the shares even.
        workers = self.args.dataloader_num_workers
        return DataLoader(
            self.train_dataset,  # type: ignore[arg-type]
            batch_size=1,
            collate_fn=self.data_collator,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
        )

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        number = inputs.pop("number")
        # Dropout is bound to the micro-batch: the same on any number of processes, and after any resume.
        set_seed(_mixed(self.args.seed, number))
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._micro_batches.append((number, loss))
        self.job.progress(self.state.global_step)
        return loss

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        loss, tokens = token_loss(model, inputs)
        self._supervised += tokens
        # Gradients are averaged over processes; the number of labels is a sum over them.
        return loss / num_items_in_batch.clamp(min=1) * self.job.world

    def _maybe_log_save_evaluate(self, tr_loss: Any, grad_norm: Any, *rest: Any, **named: Any) -> None:
        if self.state.global_step != self._ended:  # the Trainer comes here once more at the end of an epoch
            self._ended = self.state.global_step
            self._end_step(None if grad_norm is None else float(grad_norm))
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *rest, **named)

    def _end_step(self, grad_norm: float | None) -> None:
        """What all processes must agree on, before anything is logged or saved."""
        losses = torch.stack([loss for _, loss in self._micro_batches])
        mine = [float(losses.sum()) / self.job.world, self._supervised, *self.stop.asked()]
        loss, supervised, interrupted, terminated = self._summed(mine)
        self._watch.step(self.state.global_step, loss, grad_norm, self._rows)
        self._micro_batches.clear()
        self._losses += loss
        self._tokens += supervised
        self._supervised = 0
        self.stop.agree(interrupted, terminated)
        if self.stop.agreed:
            self.control.should_save = self.control.should_training_stop = True

    def _summed(self, values: list[float]) -> list[float]:
        """Each value summed over the processes."""
        if self.job.world == 1:
            return values
        summed = torch.tensor(values, dtype=torch.float64, device=self.args.device)
        torch.distributed.all_reduce(summed)
        return summed.tolist()

    def _rows(self, broken: bool) -> str:
        """The rows of the step that is being taken, or only those of micro-batches whose loss is not finite."""
        mine = [number for number, loss in self._micro_batches if number >= 0 and not (broken and loss.isfinite())]
        found: list[list[int]] = [mine]
        if self.job.world > 1:
            found = [[] for _ in range(self.job.world)]
            torch.distributed.all_gather_object(found, mine)
        numbers = sorted(number for part in found for number in part)
        rows = "; ".join(self._stream.rows(number) for number in numbers[:4])
        return f"rows {rows}" + (f" and those of {len(numbers) - 4} more micro-batches" if len(numbers) > 4 else "")

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        held_out = self.job.held_out
        assert held_out is not None
        started = time.perf_counter()
        loss = mean_loss(self.model, held_out.epoch(0), self.job.rank, self.job.world)
        self.evaluated_at = self.state.global_step
        self.job.log(self.state.global_step, self.args.max_steps, {"held_out_loss": loss})
        self._since += time.perf_counter() - started
        metrics = {"eval_loss": loss}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" not in logs:
            return
        seconds = time.perf_counter() - self._since
        step = self.state.global_step
        values = {"loss": self._losses / max(step - self._logged_at, 1)}
        values |= {name: float(logs[name]) for name in ("grad_norm", "learning_rate") if name in logs}
        values = {name: value for name, value in values.items() if math.isfinite(value)}  # JSON has no other
        values["supervised_tokens_per_second"] = round(self._tokens / seconds, 1)
        self._losses, self._logged_at = 0.0, step
        self._since, self._tokens = time.perf_counter(), 0.0
        self.job.log(step, self.args.max_steps, values)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        name = f"checkpoint-{self.state.global_step}"
        checkpoints, limit = self.args.output_dir, self.args.save_total_limit
        with self.job.saving(f"checkpoints/{name}") as folder:
            inner = folder / name
            self.args.output_dir, self.args.save_total_limit = str(folder), None
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self.args.output_dir, self.args.save_total_limit = checkpoints, limit
            if self.job.rank == 0:
                for file in inner.iterdir():
                    file.rename(folder / file.name)
                inner.rmdir()
                window = {"losses": self._losses, "logged_at": self._logged_at, "per_step": self._per_step}
                (folder / _WINDOW).write_text(json.dumps(window), "utf-8")
            self.prove(folder)
        if self.job.rank == 0:
            assert checkpoints is not None
            whole = [folder for folder in Path(checkpoints).iterdir() if step_of(folder) >= 0]
            for old in sorted(whole, key=step_of)[: -self.keep]:
                shutil.rmtree(old)

    # Every micro-batch brings its own random state.
    def _save_rng_state(self, output_dir: Any) -> None: ...
    def _load_rng_state(self, checkpoint: Any) -> None: ...


def step_of(checkpoint: Path) -> int:
    """The optimizer step that a checkpoint folder was saved at; -1 for any other folder."""
    found = re.fullmatch(r"checkpoint-(\d+)", checkpoint.name)
    return int(found[1]) if found else -1


def _mixed(seed: int, number: int) -> int:
    """A seed of its own for each micro-batch of each run."""
    import numpy as np

    return int(np.random.SeedSequence([seed, number + 1]).generate_state(1)[0])


def _refused(error: Exception) -> RecipeError:
    return RecipeError(f"trainer: {' '.join(str(error).split())}")
