"""A training, from its settings to its end: what `lora` and `full` share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainingArguments
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from medframe import Job, RecipeError
from medframe_trainers import zero
from medframe_trainers.huggingface import MicroBatchTrainer, window
from medframe_trainers.session import session
from medframe_trainers.stream import Stream
from medframe_trainers.trackers import tracked
from medframe_trainers.whole import runnable

if TYPE_CHECKING:
    from medframe_trainers.settings import Settings


@contextmanager
def arguments(job: Job, settings: Settings) -> Iterator[TrainingArguments]:
    """What the Trainer is told, for as long as a training takes.

    To be entered before the model is loaded: from there on, ZeRO-3 spreads over the processes what is loaded.
    RecipeError for settings that transformers refuses, or that cannot be shared by the processes of the job.
    """
    per_step = _per_step(job, settings)
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
            given["max_grad_norm"] = 0  # see `MicroBatchTrainer._clip`
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


def _per_step(job: Job, settings: Settings) -> int:
    """Micro-batches in an optimizer step over all processes; RecipeError when a resumed run cannot go on so."""
    if job.resume is None:
        return settings.per_step(job.world)
    begun = window(job.resume)
    if begun["deepspeed"] != zero.content(settings):
        raise RecipeError(f"trainer.deepspeed: the file {settings.deepspeed} is not as it was when the run began")
    return settings.per_step(job.world, begun_with=begun["per_step"])


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
    per_step = _per_step(job, settings)
    length = settings.max_steps * per_step if settings.max_steps else None
    stream = Stream(job.train, settings.num_train_epochs, length)
    args.max_steps = math.ceil(len(stream) / per_step)
    with tracked(job, settings.report_to if job.rank == 0 else ()) as job:
        try:
            trainer = MicroBatchTrainer(job, model, args, settings, stream, per_step, save)
            # Made anew when training starts; made here too, so that wrong settings are found before.
            trainer.create_optimizer_and_scheduler(args.max_steps)
        except (TypeError, ValueError) as error:
            raise _refused(error) from error
        with trainer.stop:
            trainer.train(resume_from_checkpoint=str(job.resume) if job.resume else None)
    if settings.deepspeed is None:
        # Accelerate leaves autocast around the model's forward; what is saved computes in its own precision.
        trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)


def _refused(error: Exception) -> RecipeError:
    return RecipeError(f"trainer: {' '.join(str(error).split())}")
