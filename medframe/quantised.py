"""Linear layers in 8 or 4 bits, by bitsandbytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from medframe.errors import BackboneError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Bits = Literal["int8", "int4"]


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
