"""Baichuan2's output layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear, normalize


class NormHead(nn.Linear):
    """Scores by the directions of its rows: Baichuan2's head. The weight itself stays as it was trained.

    The published code overwrites the weight when it first evaluates, so that training would go on with another one.
    """

    _normal: tuple[tuple[Any, ...], torch.Tensor] | None = None
    """The normalised weight, and of which weight it is."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return linear(input, self.projection())

    def projection(self) -> torch.Tensor:
        """The matrix that it multiplies by, [vocabulary, hidden]."""
        if self.weight.requires_grad and (self.training or torch.is_grad_enabled()):
            self._normal = None
            return normalize(self.weight)
        # Once for all tokens of an answer: to normalise a real head takes longer than to use it.
        weight = self.weight
        of = (weight._version, weight.data_ptr(), weight.dtype, weight.device, torch.is_inference_mode_enabled())
        if self._normal is None or self._normal[0] != of:
            self._normal = (of, normalize(weight.detach()))
        return self._normal[1]
