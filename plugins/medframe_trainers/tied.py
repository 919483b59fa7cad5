"""A peft model of which an embedding that is the head as well stays one, also where it is trained whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft import LoraConfig


def adapted(model: Any, config: LoraConfig, float32: bool) -> Any:
    """The model wrapped by peft; an embedding that is the head is trained as one tensor, and saved under both names.

    With `float32` adapters are in it where the weights are in a half precision, else in that of the weights.

    peft trains a copy of a module, and the other of the two would keep the old weights. Its own `ensure_weight_tying`
    does not survive a reload unless the embedding is called embed_tokens, which Bloom's is not.
    """
    from peft import get_peft_model

    twins = _twins(model)
    whole = config.modules_to_save or []
    together = not twins.isdisjoint(module.rpartition(".")[2] for module in whole)
    if together:
        config.modules_to_save = sorted({*whole, *twins})
    wrapped: Any = get_peft_model(model, config, autocast_adapter_dtype=float32)
    if together:
        embedding, head = (module.modules_to_save["default"] for module in _ends(wrapped))
        head.weight = embedding.weight
    return wrapped


def _twins(model: Any) -> set[str]:
    """The last part of the names of the embedding and the head, where they share their weight."""
    embedding, head = _ends(model)
    if head is None or head.weight is not embedding.weight:
        return set()
    return {name.rpartition(".")[2] for name, module in model.named_modules() if module in (embedding, head)}


def _ends(model: Any) -> tuple[Any, Any]:
    return model.get_input_embeddings(), model.get_output_embeddings()
