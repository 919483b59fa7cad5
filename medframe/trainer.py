"""The Trainer contract, and the Job it is given."""

from __future__ import annotations

import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from medframe.backbone import Backbone
from medframe.errors import SaveError
from medframe.prompt import PromptFormat

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from medframe.batch import Batches


CONTENTS = "contents.json"


class Log(Protocol):
    """Records what was measured at optimizer step `step` of `of`: `loss`, `learning_rate`, `held_out_loss`, ..."""

    def __call__(self, step: int, of: int, values: Mapping[str, float]) -> None: ...


@dataclass(kw_only=True)
class Job:
    """All that a trainer is told."""

    out: Path
    """The run directory."""
    backbone: Backbone
    tokenizer: PreTrainedTokenizerBase
    prompt: PromptFormat
    train: Batches
    held_out: Batches | None
    seed: int
    resume: Path | None
    """The checkpoint to go on from, a folder that `saving` made: checkpoints/checkpoint-STEP."""
    log: Log
    world: int = 1
    """Number of processes."""

    def load_model(self) -> PreTrainedModel:
        """The backbone's model, proven to keep packed samples apart.

        Where it does not, `batching.kind: auto` pads from here on and `packed` is a BackboneError.
        """
        model = self.backbone.load_model()
        self.train.suit(model)
        if self.held_out is not None:
            self.held_out.kind = self.train.kind
        return model

    @contextmanager
    def saving(self, name: str) -> Iterator[Path]:
        """A folder to fill. It becomes `out/name`, in place of what was there, when the block ends without error."""
        final = self.out / name
        aside, old = final.with_name(f"{final.name}.saving"), final.with_name(f"{final.name}.old")
        for left in (aside, old):
            shutil.rmtree(left, ignore_errors=True)  # left by a process that was killed
        aside.mkdir(parents=True)
        try:
            yield aside
            if final.parent.name == "checkpoints":
                write_contents(aside)
            for file in aside.rglob("*"):
                _to_disk(file)
            if final.exists():
                os.replace(final, old)
            os.replace(aside, final)
            _to_disk(final.parent)
        except Exception as error:
            if reason := _refused(error):
                raise SaveError(f"{final} could not be written: {reason}; what was there before is kept") from error
            raise
        finally:
            for left in (aside, old):
                shutil.rmtree(left, ignore_errors=True)

    def prove(self, live: Mapping[str, torch.Tensor], file: Path) -> None:
        """Reopen a safetensors file: names, shapes and bytes must be the live tensors', all finite; else ProofError."""
        from medframe.proof import saved

        saved(live, file)

    def finish(self, model: torch.nn.Module) -> None:
        """Record what the live, trained model computes: what was saved must compute the same when it is loaded again.

        To be called by the trainer once `adapter/` or `model/` is saved.
        """
        from medframe.proof import record

        record(model, self.train, self.out)


@dataclass(kw_only=True)
class Trainer(ABC):
    """How a backbone learns."""

    path_fields: ClassVar[tuple[str, ...]] = ()
    path_words: ClassVar[tuple[str, ...]] = ()
    """Values of the path fields that have a meaning of their own, and are never taken for a file of that name."""

    def steps(self, train: Batches) -> int | None:
        """Optimizer steps that `fit` will take; None where the trainer cannot tell beforehand."""
        return None

    @abstractmethod
    def fit(self, job: Job) -> None:
        """Train, and leave in `job.out` either `adapter/` (peft's layout) or `model/` (transformers' layout).

        The model comes from `job.load_model()`, is saved with `job.saving` and handed to `job.finish` at the end.
        """


def write_contents(folder: Path) -> None:
    """Write down what files the folder holds and how long they are; `damage` looks whether it still does."""
    sizes = {str(file.relative_to(folder)): file.stat().st_size for file in folder.rglob("*") if file.is_file()}
    (folder / CONTENTS).write_text(json.dumps(sizes), "utf-8")


def damage(folder: Path) -> str | None:
    """What of the checkpoint is not there as it was saved, in words; None when it is whole."""
    try:
        sizes = json.loads((folder / CONTENTS).read_text("utf-8"))
    except (OSError, ValueError):
        return f"{CONTENTS} cannot be read"
    for name, size in sizes.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if (folder / name).stat().st_size != size:
            return f"{name} is cut short"
    return None


def _refused(error: BaseException | None) -> str | None:
    """How the disk refused a write, where that is what went wrong: torch and safetensors have errors of their own."""
    while error is not None:
        if isinstance(error, OSError):
            return error.strerror or str(error)
        text = str(error)
        if any(sign in text for sign in ("No space left", "File too large", "os error")):
            return text.partition("\n")[0]
        if "PytorchStreamWriter" in text or "inline_container" in text:
            return "the disk is full, or refuses more"
        error = error.__context__
    return None


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
