"""A training, from its settings to its end: what `lora` and `full` share."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainingArguments
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from medframe import Job, RecipeError
from medframe_trainers import zero
from medframe_trainers.huggingface import MicroBatchTrainer, window
from medframe_trainers.precision import quickest
from medframe_trainers.session import session
from medframe_trainers.stream import Stream
from medframe_trainers.trackers import tracked
from medframe_trainers.whole import runnable

if TYPE_CHECKING:
    from medframe_trainers.settings import Settings


class Training:
    """A training of a job, to be used in a `with` block before the model is loaded, and left when all is saved.

    From the start of the block, ZeRO-3 spreads over the processes what is loaded; at its end nothing of DeepSpeed is
    left. RecipeError for settings that transformers refuses, or that the processes of the job cannot share.
    """

    def __init__(self, job: Job, settings: Settings) -> None:
        self._job, self._settings = job, settings
        self._stack = ExitStack()

    def __enter__(self) -> Training:
        with self._stack:
            self._begin()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def _begin(self) -> None:
        job, settings = self._job, self._settings
        self._per_step = _per_step(job, settings)
        given = settings.arguments() | {"gradient_accumulation_steps": self._per_step // job.world}
        # Left to itself, the Trainer refuses bf16 where there is no GPU, though a CPU computes in it.
        given.setdefault("use_cpu", not torch.accelerator.is_available())
        if settings.fp16 and given["use_cpu"]:
            raise RecipeError("trainer.fp16: a CPU trains in float32 whatever is asked; give bf16: true instead")
        counts = {
            "world": job.world,
            "accumulate": self._per_step // job.world,
            "total_steps": settings.steps(job.train, job.world),
            "rows": job.train.rows if job.train.kind != "packed" else None,
        }
        self._stack.enter_context(quickest(job.world))
        deepspeed = self._stack.enter_context(session(settings, **counts))
        if deepspeed and deepspeed["zero_optimization"]["stage"] == 0:
            given["max_grad_norm"] = 0  # see `MicroBatchTrainer._clip`
        try:
            self._args = TrainingArguments(
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
        self._args._n_gpu = min(1, self._args.n_gpu)

    def load(self, adapted: bool) -> Any:
        """The job's model. Under DeepSpeed it is in the precision it computes in, spread over the processes by ZeRO-3.

        RecipeError where that is not the precision in which a base that is to be `adapted` will be loaded again.
        """
        job, settings = self._job, self._settings
        if settings.deepspeed is None:
            return job.load_model()
        computed = zero.dtype(settings, job.backbone.dtype)
        # What `auto` loads. The model itself, spread by ZeRO-3, is in the precision computed in, whatever was stored.
        stored = str(job.backbone.load_config().dtype).removeprefix("torch.")
        if adapted and job.backbone.dtype == "auto" and stored != computed:
            raise RecipeError(
                f"backbone.dtype: the weights are stored in {stored}, and DeepSpeed trains in {computed}; set "
                f"backbone.dtype={computed}, so that the adapter is used with them as it was trained"
            )
        backbone = replace(job.backbone, dtype=computed)
        # Merging adapters needs whole weights: they are spread afterwards, by DeepSpeed.
        if backbone.adapters:
            unset_hf_deepspeed_config()
        model: Any = backbone.load_model()
        set_hf_deepspeed_config(self._args.hf_deepspeed_config)
        with runnable(model):
            job.suit(model)
        return model

    def fit(self, model: Any, save: Callable[[Path], None]) -> None:
        """Train the model in place, with checkpoints in job.out/checkpoints; `save(folder)` writes and proves it.

        Ctrl-C and SIGTERM save a checkpoint and raise KeyboardInterrupt and Terminated.
        """
        job, settings, args = self._job, self._settings, self._args
        length = settings.max_steps * self._per_step if settings.max_steps else None
        stream = Stream(job.train, settings.num_train_epochs, length)
        args.max_steps = math.ceil(len(stream) / self._per_step)
        with tracked(job, settings.report_to if job.rank == 0 else ()) as job:
            try:
                trainer = MicroBatchTrainer(job, model, args, settings, stream, self._per_step, save)
                # Made anew when training starts; made here too, so that wrong settings are found before.
                trainer.create_optimizer_and_scheduler(args.max_steps)
            except (TypeError, ValueError) as error:
                raise _refused(error) from error
            with trainer.stop, trainer.without_logits():
                trainer.train(resume_from_checkpoint=str(job.resume) if job.resume else None)
                trainer.agree_to_stop()  # asked since the last step, whose checkpoint is saved
        if settings.deepspeed is None:
            # Accelerate leaves autocast around the model's forward; what is saved computes in its own precision.
            trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
        else:
            engine: Any = trainer.model_wrapped
            self._stack.callback(engine.destroy)  # the process goes on to load what was saved


def _per_step(job: Job, settings: Settings) -> int:
    """Micro-batches in an optimizer step over all processes; RecipeError when a resumed run cannot go on so."""
    if job.resume is None:
        return settings.per_step(job.world)
    begun = window(job.resume)
    if begun["deepspeed"] != zero.content(settings):
        raise RecipeError(f"trainer.deepspeed: the file {settings.deepspeed} is not as it was when the run began")
    return settings.per_step(job.world, begun_with=begun["per_step"])


def _refused(error: Exception) -> RecipeError:
    return RecipeError(f"trainer: {' '.join(str(error).split())}")
