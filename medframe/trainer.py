"""The Trainer contract, and the Job it is given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from medframe import checkpoints as kept
from medframe import world as worlds
from medframe.backbone import Backbone
from medframe.footprint import Footprint
from medframe.prompt import PromptFormat
from medframe.saving import saving

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from medframe.batch import Batches


class Log(Protocol):
    """Records what was measured at optimizer step `step` of `of`: `loss`, `learning_rate`, `held_out_loss`, ...

    Every process may call it; what rank 0 says is recorded.
    """

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
    rank: int = 0
    """This process's number among those that train together. Their process group of torch.distributed is ready."""
    world: int = 1
    """Number of processes."""

    def load_model(self) -> PreTrainedModel:
        """The backbone's model, proven to keep packed samples apart.

        Where it does not, `batching.kind: auto` pads from here on and `packed` is a BackboneError.
        """
        model = self.backbone.load_model()
        self.suit(model)
        return model

    def suit(self, model: PreTrainedModel) -> None:
        """Prove that the model keeps packed samples apart, as `load_model` does, in every process with one outcome."""
        self.train.suit(model, worlds.current().gather)
        if self.held_out is not None:
            self.held_out.kind = self.train.kind

    def saving(self, name: str) -> AbstractContextManager[Path]:
        """A folder to fill. It becomes `out/name`, in place of what was there, when the block ends without error.

        Every process must enter the block; all get the same folder, and go on once it has its name. SaveError when the
        disk refuses a write.
        """
        return saving(self.out / name)

    @property
    def begun_at(self) -> int:
        """Optimizer steps that were taken before `resume` was saved; 0 for a run that begins."""
        return kept.step(self.resume) if self.resume else 0

    def checkpoints(self) -> list[Path]:
        """Every checkpoint of the run, the oldest first."""
        return kept.checkpoints(self.out)

    def progress(self, step: int) -> None:
        """Say that this process gets on, `step` optimizer steps being done.

        Once called, it must be called at least every `patience` minutes, by every process: one that is silent for
        longer ends the run, as one that has hung.
        """
        if watch := worlds.current().watch:
            watch.progress(step)

    def prove(self, live: Mapping[str, torch.Tensor], file: Path) -> None:
        """Reopen a safetensors file: names, shapes and bytes must be the live tensors', all finite; else ProofError."""
        from medframe.proof import saved

        saved(live, file)

    def finish(self, model: torch.nn.Module) -> None:
        """Record what the live, trained model computes: what was saved must compute the same when it is loaded again.

        To be called by the trainer once `adapter/` or `model/` is saved, in every process.
        """
        from medframe.proof import record

        record(model, self.train, self.out if self.rank == 0 else None)


@dataclass(kw_only=True)
class Trainer(ABC):
    """How a backbone learns."""

    path_fields: ClassVar[tuple[str, ...]] = ()
    path_words: ClassVar[tuple[str, ...]] = ()
    """Values of the path fields that have a meaning of their own, and are never taken for a file of that name."""

    def steps(self, train: Batches, world: int = 1) -> int | None:
        """Optimizer steps that `fit` takes in `world` processes; None where the trainer cannot tell beforehand."""
        return None

    def beside_quantised(self) -> bool:
        """Whether it can train beside weights of 8 or 4 bits, which stay as they are."""
        return False

    def footprint(self, model: PreTrainedModel, backbone: Backbone) -> Footprint | None:
        """What `fit` holds of the backbone's `model`, which is on the meta device and may be changed.

        None where the trainer does not say: its memory and its operations are not foretold.
        """
        return None

    @abstractmethod
    def fit(self, job: Job) -> None:
        """Train, and leave in `job.out` either `adapter/` (peft's layout) or `model/` (transformers' layout).

        The model comes from `job.load_model()`, is saved with `job.saving` and handed to `job.finish` at the end.
        Where several processes train, each of them is here. Ctrl-C and SIGTERM reach them all; a trainer that saves a
        checkpoint then raises KeyboardInterrupt or Terminated.
        """
