"""The proof that packed samples do not see each other in a model."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

TOLERANCE = 1e-4


def leak(model: PreTrainedModel) -> str | None:
    """How packed samples see each other in this model, in words; None when they do not.

    Two proofs: in a two-layer fp32 copy of the same class and configuration, a sample packed behind another has the
    logits it has alone (1e-4); in the model itself, changing the first sample leaves the logits of the second.
    Neither weights nor random state are changed.
    """
    import torch

    config = copy.deepcopy(model.config)
    config.num_hidden_layers = 2
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            small = type(model)(config).float().eval()
            first, second, other = (torch.randint(1, config.vocab_size, (n,)) for n in (5, 7, 5))
            alone = _logits(small, [second])
            behind = _logits(small, [first, second])[:, len(first) :]
            was_training = model.training
            model.eval()
            device = next(model.parameters()).device
            one = _logits(model, [first.to(device), second.to(device)])[:, len(first) :]
            two = _logits(model, [other.to(device), second.to(device)])[:, len(first) :]
            model.train(was_training)
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        return f"{type(model).__name__} cannot run a packed row: {str(error).partition(chr(10))[0]}"
    if (apart := float((alone - behind).abs().max())) > TOLERANCE:
        return f"packed samples see each other in {type(model).__name__} (logits differ by {apart:.1e})"
    if (apart := float((one - two).abs().max())) > TOLERANCE * max(1.0, float(one.abs().max())):
        return f"packed samples see each other in these weights (logits differ by {apart:.1e})"
    return None


def _logits(model: PreTrainedModel, samples: list[torch.Tensor]) -> torch.Tensor:
    """The model's logits for the samples in one row, called the way training calls it: [1, tokens, vocabulary]."""
    import torch

    positions = torch.cat([torch.arange(len(sample), device=sample.device) for sample in samples])
    # With a cache, or with an attention mask, transformers does not look at the positions for borders.
    result = model(input_ids=torch.cat(samples)[None], position_ids=positions[None], use_cache=False)
    logits: torch.Tensor = result.logits
    return logits.float()
