"""Linear layers in 8 or 4 bits, by bitsandbytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from medframe.errors import BackboneError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Bits = Literal["int8", "int4"]


_BYTES = {"int8": 1.0, "int4": 0.5 + 4 / 64}
"""Of an element; int4's scale is a float32 for 64 of them, int8's for each row."""


def saved(model: PreTrainedModel, bits: Bits) -> float:
    """Bytes by which the model would be smaller, once `quantise` had rounded what is not trained of it."""
    from torch import nn

    vocabulary = model.config.get_text_config().vocab_size
    layers = [module for module in model.modules() if type(module) is nn.Linear and module.out_features != vocabulary]
    weights = [layer.weight for layer in layers if not layer.weight.requires_grad]
    scales = sum(4.0 * len(weight) for weight in weights) if bits == "int8" else 0.0
    return sum(weight.nbytes - weight.numel() * _BYTES[bits] for weight in weights) - scales


def quantise(model: PreTrainedModel, bits: Bits) -> PreTrainedModel:
    """The model with the weight of every linear layer but its head rounded, in place, and nothing of them trained.

    int8 is LLM.int8() with a scale for each row (Dettmers et al., 2022), int4 is NF4 with one for 64 weights (Dettmers
    et al., 2023). Products are computed in the model's own precision. peft's LoRA goes beside such layers.
    BackboneError where bitsandbytes is not installed.
    """
    from torch import nn

    try:
        import bitsandbytes
    except ImportError as error:
        needed = f"backbone.weights_dtype: {bits} needs bitsandbytes: pip install 'medframe[quantised]'"
        raise BackboneError(needed) from error
    bnb: Any = bitsandbytes.nn
    head = model.get_output_embeddings()
    for name, layer in list(model.named_modules()):
        # NormHead and others of their own kind compute something else than a product.
        if type(layer) is not nn.Linear or layer is head:
            continue
        made: Any
        bias, weight = layer.bias is not None, layer.weight.data
        shape = (layer.in_features, layer.out_features)
        if bits == "int8":
            made = bnb.Linear8bitLt(*shape, bias, has_fp16_weights=False, device="meta")
            made.weight = bnb.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        else:
            made = bnb.Linear4bit(*shape, bias, compute_dtype=weight.dtype, quant_type="nf4", device="meta")
            # Its own way of laying weights out for a CPU fails at sizes that 128 does not divide.
            made.support_avx512bf16_for_cpu = False
            made.weight = bnb.Params4bit(weight, requires_grad=False, quant_type="nf4")
        made.bias = layer.bias
        made.to(weight.device)  # which rounds it
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, made)
    # By these peft and accelerate know such a model.
    setattr(model, "is_loaded_in_8bit" if bits == "int8" else "is_loaded_in_4bit", True)
    return model
