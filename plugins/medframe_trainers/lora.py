"""The `lora` trainer: its recipe section, and the adapter around the model."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medframe import Backbone, Footprint, Job, ProofError, RecipeError
from medframe_trainers.settings import Settings
from medframe_trainers.whole import whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from medframe_trainers.training import Training


@dataclass(kw_only=True)
class Lora(Settings):
    """LoRA adapters, by the Hugging Face Trainer and peft."""

    rank: int = 8
    """Rank of the adapters."""
    alpha: float = 16
    """The adapters' output is scaled by alpha / rank."""
    dropout: float = 0.0
    """Dropout on the adapters' input."""
    targets: list[str] | None = None
    """Modules to adapt, by the last part of their names, or [all-linear]; null: the backbone's own choice."""
    modules_to_save: list[str] = field(default_factory=list)
    """Modules trained whole and saved with the adapter, such as embed_tokens, lm_head."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, not {self.rank}")
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"alpha must be above 0, not {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, not {self.dropout}")
        if self.targets == []:
            raise ValueError("targets is empty: name modules, or give null for the backbone's own choice")

    def beside_quantised(self) -> bool:
        return self.deepspeed is None

    def footprint(self, model: PreTrainedModel, backbone: Backbone) -> Footprint:
        from medframe_trainers.footprint import footprint, held

        base = held(self, model, backbone)
        self._check_precision(base)
        return footprint(self, self._adapted(base, backbone.lora_targets))

    def fit(self, job: Job) -> None:
        from medframe_trainers.training import Training

        with Training(job, self) as training:
            self._fit(job, training)

    def _fit(self, job: Job, training: Training) -> None:
        from peft import get_peft_model_state_dict
        from transformers import set_seed

        base = training.load(adapted=True)
        self._check_precision(base)
        set_seed(job.seed)  # every process begins with the same adapter
        model = self._adapted(base, job.backbone.lora_targets)
        if self.gradient_checkpointing:
            model.enable_input_require_grads()
        # Left to itself, peft saves the whole embeddings, trained or not, where an adapter below has grown them.
        model.save_pretrained = partial(model.save_pretrained, save_embedding_layers=False)
        tensors = partial(get_peft_model_state_dict, model, save_embedding_layers=False)
        adapter = [parameter for parameter in model.parameters() if parameter.requires_grad]
        with whole(*adapter):
            start = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors().items()}

        def save(folder: Path) -> None:
            with whole(*adapter):
                if job.rank == 0:
                    model.save_pretrained(str(folder))
                    (folder / "README.md").unlink(missing_ok=True)  # peft's form to fill in; the run has a card
                    job.prove(tensors(), folder / "adapter_model.safetensors")

        training.fit(model, save)
        with whole(*adapter):
            same = all(tensor.cpu().equal(start[name].to(tensor.dtype)) for name, tensor in tensors().items())
        if same:
            raise ProofError(
                "trainer: no tensor of the adapter has changed: nothing was learnt. The first step of a warm-up has a "
                "learning rate of 0: take more steps"
            )
        with job.saving("adapter") as folder:
            save(folder)
            if job.rank == 0:
                job.tokenizer.save_pretrained(str(folder))
        job.finish(model)

    def _check_precision(self, model: Any) -> None:
        """RecipeError for weights in which the gradients would be lost."""
        if any(str(parameter.dtype) == "torch.float16" for parameter in model.parameters()) and not self.fp16:
            # The loss is divided by the labels of a whole step: float16 ends at 6e-8.
            raise RecipeError(
                "backbone.dtype: gradients of float16 weights vanish without loss scaling; give "
                "backbone.dtype=bfloat16, or trainer.fp16=true on a GPU"
            )

    def _adapted(self, model: Any, backbones_choice: tuple[str, ...]) -> Any:
        from peft import LoraConfig

        from medframe_trainers.tied import adapted

        targets = self.targets or list(backbones_choice)
        every = targets == ["all-linear"]
        names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
        for field_name, wanted in (("targets", [] if every else targets), ("modules_to_save", self.modules_to_save)):
            if missing := [module for module in wanted if module.rpartition(".")[2] not in names]:
                leaves = sorted({n.rpartition(".")[2] for n, m in model.named_modules() if not [*m.children()]})
                raise RecipeError(
                    f"trainer.{field_name}: the model has no module {', '.join(missing)}; it has {', '.join(leaves)}"
                )
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            target_modules="all-linear" if every else targets,
            exclude_modules=_beside_the_language_model(model) if every else None,
            modules_to_save=self.modules_to_save or None,
            bias="none",
            task_type="CAUSAL_LM",
        )
        try:
            # DeepSpeed keeps weights of float32 in its optimizer, and at stage 3 takes them in one precision alone.
            return adapted(model, config, float32=self.deepspeed is None)
        except ValueError as error:  # such as a module that peft cannot adapt in this architecture
            raise RecipeError(f"trainer.targets: {' '.join(str(error).split())[:300]}") from error


def _beside_the_language_model(model: Any) -> str | None:
    """A pattern of the names of all modules outside it, such as the part that sees; None where it is all there is."""
    language_model = model.get_decoder()
    name = next(name for name, module in model.named_modules() if module is language_model)
    return rf"(?!{re.escape(name)}\.).*" if name else None
