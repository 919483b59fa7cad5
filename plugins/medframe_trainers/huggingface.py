"""The Hugging Face Trainer with medframe's micro-batches, loss, log, schedule and checkpoints."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from medframe import Job, ProofError
from medframe_trainers import schedule, universal, zero
from medframe_trainers.divergence import Divergence
from medframe_trainers.head import Head, head, is_right
from medframe_trainers.loss import mean_loss, token_loss
from medframe_trainers.stop import Stop, deaf_to_signals
from medframe_trainers.stream import Share, Stream
from medframe_trainers.whole import runnable

if TYPE_CHECKING:
    from medframe_trainers.settings import Settings

_SCHEDULER = "scheduler.pt"
_WINDOW = "window.json"


class MicroBatchTrainer(Trainer):
    """The Hugging Face Trainer, told what to do where it would do otherwise; `Stop` and `Divergence` end it."""

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
        self.stop = Stop()
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        # Have the Trainer count the labels of the whole optimizer step and hand the number to compute_loss,
        # which divides by it: nothing is left to scale.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self._stream, self._per_step = stream, per_step
        self._head: Head | None = None
        self._divergence = Divergence(settings.max_grad_norm_growth, settings.fp16)
        self._micro_batches: list[tuple[int, torch.Tensor]] = []
        """(number in the stream, loss) of those of the step that is being taken."""
        self._norm: torch.Tensor | None = None
        self._rate = 0.0
        """The learning rate of the step that is being taken."""
        self._ended = job.begun_at if job.resume else None
        """The last step that `_end_step` looked at."""
        self._since, self._supervised, self._tokens = time.perf_counter(), 0, 0.0
        # The losses since the last logged step. The Trainer's own sum does not survive a resume.
        self._losses, self._logged_at = 0.0, 0
        if job.resume:
            left = window(job.resume)
            self._losses, self._logged_at = left["losses"], left["logged_at"]

    def get_train_dataloader(self) -> DataLoader[Any]:
        # Accelerate would share out the micro-batches in its own way, and repeat some to make the shares even.
        workers = self.args.dataloader_num_workers
        return DataLoader(
            self.train_dataset,  # type: ignore[arg-type]
            batch_size=1,
            collate_fn=self.data_collator,
            num_workers=workers,
            worker_init_fn=deaf_to_signals,  # which come to all that a launcher has started
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
        )

    @contextmanager
    def without_logits(self) -> Iterator[None]:
        """Within it losses come from the model's head itself, where that is shown to be right."""
        model: Any = self.model
        with runnable(model):
            found = head(model)
            self._head = found if found and is_right(model, found) else None
        try:
            yield
        finally:
            if found:
                found.release()
            self._head = None

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
        loss, tokens = token_loss(model, inputs, self._head)
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
        loss, supervised = self._summed([float(losses.sum()) / self.job.world, self._supervised])
        self._divergence.step(self.state.global_step, loss, grad_norm, self._rows)
        self._micro_batches.clear()
        self._losses += loss
        self._tokens += supervised
        self._supervised = 0
        if self.state.global_step >= self.args.max_steps:
            self.control.should_log = True
        if self.job.held_out and self.state.global_step >= self.args.max_steps:
            # Before the last checkpoint: a run that goes on from it has nothing left to measure.
            self.control.should_evaluate = True
        self.agree_to_stop()
        if self.stop.agreed:
            self.control.should_save = self.control.should_training_stop = True

    def agree_to_stop(self) -> None:
        """Have all processes stop where one was asked to, as a cluster asks one of each machine."""
        if not self.stop.agreed:
            self.stop.agree(*self._summed(self.stop.asked()))

    def _summed(self, values: Sequence[float]) -> list[float]:
        """Each value summed over the processes."""
        if self.job.world == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64)  # on the CPU: not every device has this precision
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
        step = self.state.global_step
        share = self.job.rank, self.job.world
        loss = mean_loss(model, held_out.epoch(0), *share, lambda: self.job.progress(step), self._head)
        if self.is_deepspeed_enabled:
            # Under ZeRO-3, what was fetched for a layer that did not come would still be on its way.
            model.empty_partition_cache()
        if not math.isfinite(loss):
            why = "the training has diverged" if step else "look at the base model's weights"
            raise ProofError(f"the held-out loss is not finite at step {step}: {why}; checkpoints are kept")
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
                universal.save(self.model_wrapped, folder, self._prove)
                if self.job.rank == 0:
                    torch.save(self._scheduler().state_dict(), folder / _SCHEDULER)
            else:
                self.save(folder)
                self._save_optimizer_and_scheduler(str(folder))
                self._save_scaler(str(folder))
                if self.job.rank == 0:
                    self._prove_optimizer(folder / "optimizer.pt")
            if self.job.rank == 0:
                self.state.save_to_json(str(folder / "trainer_state.json"))
                left = {
                    "losses": self._losses,
                    "logged_at": self._logged_at,
                    "per_step": self._per_step,
                    "deepspeed": zero.content(self.settings),
                }
                (folder / _WINDOW).write_text(json.dumps(left), "utf-8")
        if self.job.rank == 0:
            for old in self.job.checkpoints()[: -self.settings.keep]:
                shutil.rmtree(old, ignore_errors=True)  # there is one too many: no reason to end the training

    def _prove(self, live: Mapping[str, torch.Tensor], file: Path) -> None:
        self.job.prove(live, file)
        self.job.progress(self.state.global_step)  # of a large model there are many files, each of which takes long

    def _prove_optimizer(self, file: Path) -> None:
        """Reopen the optimizer's state: its tensors must be the live ones; else ProofError."""
        assert self.optimizer is not None
        live, saved = (
            self.optimizer.state_dict()["state"],
            torch.load(file, "cpu", weights_only=True, mmap=True)["state"],
        )
        for number, state in live.items():
            for name, value in state.items():
                if torch.is_tensor(value) and not value.cpu().equal(saved[number][name]):
                    raise ProofError(f"{file}: {name} of parameter {number} is not what the optimizer holds")

    # Every micro-batch brings its own random state.
    def _save_rng_state(self, output_dir: Any) -> None: ...
    def _load_rng_state(self, checkpoint: Any) -> None: ...


def window(checkpoint: Path) -> dict[str, Any]:
    """What the checkpoint holds that the Trainer itself would not bring back."""
    found: dict[str, Any] = json.loads((checkpoint / _WINDOW).read_text("utf-8"))
    return found


def _mixed(seed: int, number: int) -> int:
    """A seed of its own for each micro-batch of each run."""
    return int(np.random.SeedSequence([seed, number + 1]).generate_state(1)[0])
