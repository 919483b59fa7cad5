"""A run of the Hugging Face Trainer on medframe's micro-batches; what `lora` and `full` share."""

from __future__ import annotations

import json
import math
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments, set_seed
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from medframe import Job, RecipeError
from medframe_trainers import schedule, universal, zero
from medframe_trainers.loss import mean_loss, token_loss
from medframe_trainers.session import session
from medframe_trainers.stop import Stop
from medframe_trainers.stream import Share, Stream
from medframe_trainers.trackers import tracked
from medframe_trainers.watch import Watch
from medframe_trainers.whole import runnable

if TYPE_CHECKING:
    from medframe_trainers.settings import Settings

_SCHEDULER = "scheduler.pt"
_WINDOW = "window.json"
"""The file of a checkpoint that holds what the Trainer itself would not bring back."""


@contextmanager
def arguments(job: Job, settings: Settings) -> Iterator[TrainingArguments]:
    """What the Trainer is told, for as long as a training takes.

    To be entered before the model is loaded: from there on, ZeRO-3 spreads over the processes what is loaded.
    RecipeError for settings that transformers refuses, or that cannot be shared by the processes of the job.
    """
    per_step = per_step_of(job, settings)
    given = settings.arguments() | {"gradient_accumulation_steps": per_step // job.world}
    # Left to itself, the Trainer refuses bf16 where there is no GPU, though a CPU computes in it.
    given.setdefault("use_cpu", not torch.accelerator.is_available())
    counts = {
        "world": job.world,
        "accumulate": per_step // job.world,
        "total_steps": settings.steps(job.train, job.world),
    }
    rows = job.train.rows if job.train.kind != "packed" else None
    with session(settings, **counts, rows=rows) as deepspeed:
        if deepspeed and deepspeed["zero_optimization"]["stage"] == 0:
            given["max_grad_norm"] = 0  # see `_Trainer._clip`
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
                deepspeed=deepspeed,
                # DeepSpeed's logger too is set to these.
                log_level="error",
                log_level_replica="error",
                **given,
            )
        except (TypeError, ValueError) as error:
            raise _refused(error) from error
        # One process drives one device: the Trainer would split each micro-batch over all GPUs it sees.
        args._n_gpu = min(1, args.n_gpu)
        yield args


def load(job: Job, args: TrainingArguments, settings: Settings) -> Any:
    """The job's model. Under DeepSpeed it is in the precision it computes in, spread over the processes by ZeRO-3."""
    if settings.deepspeed is None:
        return job.load_model()
    backbone = replace(job.backbone, dtype=zero.dtype(settings, job.backbone.dtype))
    # Merging adapters needs whole weights: they are spread afterwards, by DeepSpeed.
    if backbone.adapters:
        unset_hf_deepspeed_config()
    model = backbone.load_model()
    set_hf_deepspeed_config(args.hf_deepspeed_config)
    with runnable(model):
        job.suit(model)
    return model


def per_step_of(job: Job, settings: Settings) -> int:
    """Micro-batches in an optimizer step, over all processes: a resumed run keeps the number it began with."""
    per_step = settings.gradient_accumulation_steps or job.world
    if job.resume:
        per_step = int(_window(job.resume)["per_step"])
        if _window(job.resume)["deepspeed"] != zero.content(settings):
            raise RecipeError(f"trainer.deepspeed: the file {settings.deepspeed} is not as it was when the run began")
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
    save: Callable[[Path], None],
) -> None:
    """Train the model in place, with checkpoints in job.out/checkpoints; `save(folder)` writes and proves its weights.

    Ctrl-C and SIGTERM save a checkpoint and raise KeyboardInterrupt and Terminated.
    """
    per_step = per_step_of(job, settings)
    length = settings.max_steps * per_step if settings.max_steps else None
    stream = Stream(job.train, settings.num_train_epochs, length)
    args.max_steps = math.ceil(len(stream) / per_step)
    with tracked(job, settings.report_to if job.rank == 0 else ()) as job:
        try:
            trainer = _Trainer(job, model, args, settings, stream, per_step, save)
            # Made anew when training starts; made here too, so that wrong settings are found before.
            trainer.create_optimizer_and_scheduler(args.max_steps)
        except (TypeError, ValueError) as error:
            raise _refused(error) from error
        with trainer.stop:
            trainer.train(resume_from_checkpoint=str(job.resume) if job.resume else None)
        if job.held_out and trainer.evaluated_at != trainer.state.global_step:
            trainer.evaluate()
    if settings.deepspeed is None:
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
        save: Callable[[Path], None],
    ) -> None:
        super().__init__(
            model=model,
            args=args,
            train_dataset=Share(stream, per_step, job.rank, job.world),
            eval_dataset=stream if job.held_out else None,  # asked for; `evaluate` reads job.held_out itself
            data_collator=lambda items: items[0],
        )
        self.job = job
        self.settings = settings
        self.save = save
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
        self._norm: torch.Tensor | None = None
        self._rate = 0.0
        """The learning rate of the step that is being taken."""
        self._ended = job.resume and step_of(job.resume)
        """The last step that `_end_step` looked at."""
        self._since, self._supervised, self._tokens = time.perf_counter(), 0, 0.0
        # The losses since the last logged step. The Trainer's own sum does not survive a resume.
        self._losses, self._logged_at = 0.0, 0
        if job.resume:
            window = _window(job.resume)
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
        self._rate = super()._get_learning_rate()
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
        model: Any = self.model_wrapped if self.is_deepspeed_enabled else self.model
        loss = mean_loss(model, held_out.epoch(0), self.job.rank, self.job.world)
        if self.is_deepspeed_enabled:
            # Under ZeRO-3, what was fetched for a layer that did not come would still be on its way.
            model.empty_partition_cache()
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

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        # The one owner of the schedule, also where a DeepSpeed file describes it.
        if self.lr_scheduler is None:
            stepped: Any = optimizer or self.optimizer
            self.lr_scheduler: Any = schedule.scheduler(stepped, self.settings, num_training_steps)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        prepare: Any = super()._prepare_for_training
        if not self.is_deepspeed_enabled:
            return prepare(max_steps, train_dataloader, resume_from_checkpoint)
        if self.job.resume:
            universal.load_weights(self.model, self.job.resume)
        prepared = prepare(max_steps, train_dataloader, None)
        engine: Any = self.model_wrapped
        if engine.zero_optimization_stage() == 0:
            engine.basic_optimizer.register_step_pre_hook(self._clip)
        if self.job.resume:
            universal.load(engine, self.job.resume)
            scheduler = self._scheduler()
            scheduler.load_state_dict(torch.load(self.job.resume / _SCHEDULER, weights_only=True))
            for group, rate in zip(scheduler.optimizer.param_groups, scheduler.get_last_lr(), strict=True):
                group["lr"] = rate
        return prepared

    def _clip(self, optimizer: Any, *_: Any) -> None:
        """Clip the gradients where DeepSpeed, at stage 0, would not tell their norm."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._norm = torch.nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm or math.inf)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        of_the_trainer: Any = super()._get_grad_norm
        return of_the_trainer(model, grad_norm) if self._norm is None else float(self._norm)

    def _get_learning_rate(self) -> float:
        # The one that the step was taken with: where DeepSpeed makes the optimizer, the schedule is a step further.
        return self._rate

    def _scheduler(self) -> Any:
        """The scheduler itself, where DeepSpeed steps it."""
        return getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with self.job.saving(f"checkpoints/checkpoint-{self.state.global_step}") as folder:
            if self.is_deepspeed_enabled:
                universal.save(self.model_wrapped, folder, self.job.prove)
                if self.job.rank == 0:
                    torch.save(self._scheduler().state_dict(), folder / _SCHEDULER)
            else:
                self.save(folder)
                self._save_optimizer_and_scheduler(str(folder))
                self._save_scaler(str(folder))
            if self.job.rank == 0:
                self.state.save_to_json(str(folder / "trainer_state.json"))
                window = {
                    "losses": self._losses,
                    "logged_at": self._logged_at,
                    "per_step": self._per_step,
                    "deepspeed": zero.content(self.settings),
                }
                (folder / _WINDOW).write_text(json.dumps(window), "utf-8")
        if self.job.rank == 0:
            whole = [folder for folder in (self.job.out / "checkpoints").iterdir() if step_of(folder) >= 0]
            for old in sorted(whole, key=step_of)[: -self.settings.keep]:
                shutil.rmtree(old)

    # Every micro-batch brings its own random state.
    def _save_rng_state(self, output_dir: Any) -> None: ...
    def _load_rng_state(self, checkpoint: Any) -> None: ...


def _window(checkpoint: Path) -> dict[str, Any]:
    window: dict[str, Any] = json.loads((checkpoint / _WINDOW).read_text("utf-8"))
    return window


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
