"""A run of the Hugging Face Trainer on medframe's micro-batches; what `lora` and `full` share."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from medframe import Job, ProofError, RecipeError
from medframe_trainers.loss import mean_loss, token_loss
from medframe_trainers.stream import Stream

_WINDOW = "window.json"
"""The file of a checkpoint that holds the sum of the losses since the last logged step."""


def fit(
    job: Job,
    model: Any,
    arguments: dict[str, Any],
    keep: int,
    prove: Callable[[Path], None],
) -> None:
    """Train the model in place; checkpoints of it lie in job.out/checkpoints, each proven by `prove(folder)`.

    An interrupt (Ctrl-C) saves a checkpoint and raises KeyboardInterrupt.
    """
    steps, accumulate = arguments.pop("max_steps"), arguments["gradient_accumulation_steps"]
    epochs = arguments.pop("num_train_epochs")
    # Left to itself, the Trainer refuses bf16 where there is no GPU, though a CPU computes in it.
    arguments.setdefault("use_cpu", not torch.accelerator.is_available())
    stream = Stream(job.train, epochs, steps * accumulate if steps else None)
    try:
        args = TrainingArguments(
            output_dir=str(job.out / "checkpoints"),
            max_steps=steps or math.ceil(len(stream) / accumulate),
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
            **arguments,
        )
        # One process drives one device: the Trainer would split each micro-batch over all GPUs it sees.
        args._n_gpu = min(1, args.n_gpu)
        trainer = _Trainer(job, model, args, stream, keep, prove)
        # Made anew when training starts; made here too, so that wrong settings are found before.
        trainer.create_optimizer_and_scheduler(args.max_steps)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"trainer: {' '.join(str(error).split())}") from error
    with _Interrupt(trainer):
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
        stream: Stream,
        keep: int,
        prove: Callable[[Path], None],
    ) -> None:
        super().__init__(
            model=model,
            args=args,
            train_dataset=stream,  # any sequence will do
            eval_dataset=stream if job.held_out else None,  # asked for; `evaluate` reads job.held_out itself
            data_collator=lambda items: items[0],
        )
        self.job = job
        self.keep = keep
        self._stream = stream
        self.prove = prove
        self.evaluated_at = -1
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        # Have the Trainer count the labels of the whole optimizer step and hand the number to compute_loss,
        # which divides by it: nothing is left to scale.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self._since, self._supervised = time.perf_counter(), 0
        # The losses since the last logged step. The Trainer's own sum does not survive a resume.
        self._losses, self._logged_at = torch.zeros(()), 0
        if job.resume:
            window = json.loads((job.resume / _WINDOW).read_text("utf-8"))
            self._losses, self._logged_at = self._losses + window["losses"], window["logged_at"]

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self._stream)

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
        return loss / num_items_in_batch.clamp(min=1) * self.accelerator.num_processes

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._losses = self._losses.to(loss.device) + loss
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        held_out = self.job.held_out
        assert held_out is not None
        started = time.perf_counter()
        loss = mean_loss(self.model, held_out.epoch(0))
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
        values = {"loss": float(self._losses) / max(step - self._logged_at, 1)}
        self._losses, self._logged_at = torch.zeros_like(self._losses), step
        if not math.isfinite(values["loss"]):
            raise ProofError(f"the loss is not finite at step {step}: the training has diverged; checkpoints are kept")
        values |= {name: float(logs[name]) for name in ("grad_norm", "learning_rate") if name in logs}
        values = {name: value for name, value in values.items() if math.isfinite(value)}  # JSON has no other
        values["supervised_tokens_per_second"] = round(self._supervised / seconds, 1)
        self._since, self._supervised = time.perf_counter(), 0
        self.job.log(self.state.global_step, self.args.max_steps, values)

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
            for file in inner.iterdir():
                file.rename(folder / file.name)
            inner.rmdir()
            window = {"losses": float(self._losses), "logged_at": self._logged_at}
            (folder / _WINDOW).write_text(json.dumps(window), "utf-8")
            self.prove(folder)
        assert checkpoints is not None
        whole = [folder for folder in Path(checkpoints).iterdir() if step_of(folder) >= 0]
        for old in sorted(whole, key=step_of)[: -self.keep]:
            shutil.rmtree(old)


def step_of(checkpoint: Path) -> int:
    """The optimizer step that a checkpoint folder was saved at; -1 for any other folder."""
    found = re.fullmatch(r"checkpoint-(\d+)", checkpoint.name)
    return int(found[1]) if found else -1


class _Interrupt(TrainerCallback):
    """The first Ctrl-C ends the training after a checkpoint at the next step; the second at once."""

    def __init__(self, trainer: _Trainer) -> None:
        self.asked = False
        self._trainer = trainer

    def __enter__(self) -> None:
        self._before = signal.getsignal(signal.SIGINT)
        self._trainer.add_callback(self)
        signal.signal(signal.SIGINT, self._ask)

    def __exit__(self, kind: Any, *rest: Any) -> None:
        signal.signal(signal.SIGINT, self._before)
        if self.asked and kind is None:
            raise KeyboardInterrupt

    def _ask(self, *_: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if self.asked:
            control.should_save = control.should_training_stop = True
        return control
