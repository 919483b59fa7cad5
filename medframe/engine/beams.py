"""Beam search, by transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from medframe.engine.request import Request


def searched(model: Any, requests: Sequence[Request]) -> None:
    """Answer requests of the same decoding, side by side, by a search for the answer that is likeliest as a whole."""
    decoding, device = requests[0].decoding, model.device
    width = max(len(request.ids) for request in requests)
    ends = sorted(requests[0].ends)
    pad = ends[0]  # what stands there is masked, and cut off behind an end
    ids = torch.tensor([[pad] * (width - len(request.ids)) + request.ids for request in requests], device=device)
    mask = torch.tensor([[0] * (width - len(r.ids)) + [1] * len(r.ids) for r in requests], device=device)
    found = model.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=GenerationConfig(
            num_beams=decoding.num_beams,
            do_sample=False,
            repetition_penalty=decoding.repetition_penalty,
            max_new_tokens=decoding.max_new_tokens,
            eos_token_id=ends,
            pad_token_id=pad,
        ),
    )
    for request, row in zip(requests, found[:, width:].tolist(), strict=True):
        for token in row:
            if not request.finish:
                request.take(token)
