"""The proof that packed samples do not see each other in a model."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

TOLERANCE = 1e-4
_WINDOW = 3
"""Keys that a window of attention spans in the small copy: less than the samples, so that it ends within them."""


def leak(model: PreTrainedModel) -> str | None:
    """How packed samples see each other in this model, in words; None when they do not.

    Two proofs: in a small fp32 copy of the same class and configuration (`_small`), a sample packed behind another has
    the logits it has alone (1e-4); in the model itself, changing the first sample leaves the logits of the second.
    Neither weights nor random state are changed.
    """
    import torch

    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            copied = small(model)
            vocabulary = copied.config.get_text_config(decoder=True).vocab_size
            first, second, other = (torch.randint(1, vocabulary, (n,)) for n in (5, 7, 5))
            alone = logits(copied, [second])
            behind = logits(copied, [first, second])[:, len(first) :]
            was_training = model.training
            device = next(model.parameters()).device
            try:
                model.eval()
                one = logits(model, [first.to(device), second.to(device)])[:, len(first) :]
                two = logits(model, [other.to(device), second.to(device)])[:, len(first) :]
            finally:
                model.train(was_training)
    except Exception as error:  # any architecture may come, and fail in a way of its own
        return f"{type(model).__name__} cannot run a packed row: {str(error).partition(chr(10))[0]}"
    if (apart := float((alone - behind).abs().max())) > TOLERANCE:
        return f"packed samples see each other in {type(model).__name__} (logits differ by {apart:.1e})"
    if (apart := float((one - two).abs().max())) > TOLERANCE * max(1.0, float(one.abs().max())):
        return f"packed samples see each other in these weights (logits differ by {apart:.1e})"
    return None


def small(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the same class with random fp32 weights, evaluating; its configuration is that of `_small`."""
    made: PreTrainedModel = type(model)(_small(model.config)).float().eval()
    return made


def _small(config: PretrainedConfig) -> PretrainedConfig:
    """The configuration with the first two layers and one of every other kind, and short windows.

    A composite one (text and images) is made small in every part.
    """
    small = copy.deepcopy(config)
    parts: list[Any] = [small, *(getattr(small, name, None) for name in small.sub_configs)]
    for part in parts:
        if isinstance(count := getattr(part, "num_hidden_layers", None), int):
            # What differs from layer to layer, such as sliding or full attention, is a list with a value for each.
            lists = {key: each for key, each in vars(part).items() if isinstance(each, list) and len(each) == count}
            kinds = [tuple(each[i] for each in lists.values() if isinstance(each[i], str)) for i in range(count)]
            kept = sorted({*range(min(2, count)), *map(kinds.index, kinds)})
            for name, values in lists.items():
                setattr(part, name, [values[i] for i in kept])
            part.num_hidden_layers = len(kept)
        if getattr(part, "first_k_dense_replace", 0):
            part.first_k_dense_replace = 1  # the second layer is a mixture of experts
        for window in ("sliding_window", "attention_chunk_size"):
            if (getattr(part, window, None) or 0) > _WINDOW:
                setattr(part, window, _WINDOW)
    return small


def logits(model: PreTrainedModel, samples: list[torch.Tensor]) -> torch.Tensor:
    """The model's logits for the samples in one row, called the way training calls it: [1, tokens, vocabulary]."""
    import torch

    positions = torch.cat([torch.arange(len(sample), device=sample.device) for sample in samples])
    # With a cache, or with an attention mask, transformers does not look at the positions for borders.
    result = model(input_ids=torch.cat(samples)[None], position_ids=positions[None], use_cache=False)
    found: torch.Tensor = result.logits
    return found.float()
