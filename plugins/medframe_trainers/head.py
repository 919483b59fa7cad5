"""A model's head that gives the loss instead of logits: at no time is there a row of logits for every token."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy, linear

from medframe_trainers.loss import token_loss

_ROWS = 256
"""Whose logits are held at a time on a CPU."""
_ELEMENTS = 1 << 26
"""Logits that are held at a time on a GPU, though no fewer than those of `_ROWS`."""
_FP16_SCALE = 1024.0
"""By which gradients of logits are multiplied in float16, which would lose most of a large vocabulary's."""


class Head:
    """The output layer of a model; within `giving`, it returns the loss in place of logits."""

    def __init__(self, layer: nn.Linear) -> None:
        self._layer = layer
        self._of_logits = layer.forward
        self._asked: tuple[torch.Tensor, torch.Tensor] | None = None
        self._low: tuple[Any, torch.Tensor] | None = None
        """A frozen weight in the precision to compute in, and of which weight it is."""
        layer.forward = self._forward  # type: ignore[assignment, method-assign]

    @contextmanager
    def giving(self, targets: torch.Tensor, keep: torch.Tensor) -> Iterator[None]:
        """Within it the layer returns the sum of the cross-entropies with `targets` [n].

        They belong to the n places of `keep`, bool [rows, tokens], whether the model hands on these alone or all.
        """
        self._asked = targets, keep
        try:
            yield
        finally:
            self._asked = None

    def release(self) -> None:
        """The layer is as it was."""
        del self._layer.forward

    def _forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self._asked is None:
            return self._of_logits(hidden)
        targets, keep = self._asked
        if hidden.shape[:-1] == keep.shape:
            hidden = hidden[keep]
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        weight, bias = projection(self._layer), _bias(self._layer)
        if not torch.is_grad_enabled():
            weight, bias = weight.detach(), None if bias is None else bias.detach()
        with torch.autocast(kind, enabled=False):
            rows = hidden.reshape(-1, hidden.shape[-1]).to(dtype)
            if kernel := _kernel(kind, dtype):
                return kernel(rows, weight.to(dtype), targets, bias)
            loss: torch.Tensor = LinearCrossEntropy.apply(rows, weight, bias, targets, self._in(dtype, weight))  # type: ignore[no-untyped-call]
            return loss

    def _in(self, dtype: torch.dtype, weight: torch.Tensor) -> torch.Tensor:
        """The weight in this precision; of a frozen one, which no step changes, the copy is kept."""
        if weight.dtype == dtype:
            return weight.detach()
        if weight.requires_grad or hasattr(weight, "ds_id"):
            return weight.detach().to(dtype)
        of = (weight._version, weight.data_ptr(), dtype)
        if self._low is None or self._low[0] != of:
            self._low = of, weight.detach().to(dtype)
        return self._low[1]


def head(model: Any) -> Head | None:
    """The model's head, made to give losses; None where it is not one linear layer, as under LoRA of its own.

    The model may be wrapped by peft.
    """
    layer = model.get_output_embeddings()
    if hasattr(layer, "modules_to_save"):  # peft's copy that is trained
        layer = layer.modules_to_save[layer.active_adapters[0]]
    if isinstance(layer, nn.Linear) and (type(layer).forward is nn.Linear.forward or hasattr(layer, "projection")):
        return Head(layer)
    return None


def is_right(model: Any, head: Head) -> bool:
    """Whether the head's loss is the one of the model's logits, which some models change once more."""
    ids = torch.arange(1, 17, device=next(model.parameters()).device)[None]
    batch = {"input_ids": ids, "labels": ids, "position_ids": ids - 1}
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits, own = (float(token_loss(model, batch, by)[0]) for by in (None, head))
    except Exception:  # any architecture may come, and fail in a way of its own
        return False
    finally:
        model.train(was_training)
    return not abs(own - logits) > 1e-3 * abs(logits)  # what is not a number is found where it came from


def rows_at_a_time(gpu: bool, vocabulary: int) -> int:
    """Rows whose logits are held at a time."""
    return max(_ROWS, _ELEMENTS // vocabulary) if gpu else _ROWS


def projection(layer: nn.Linear) -> torch.Tensor:
    """The matrix that the layer multiplies by: its weight, or what it says that it makes of it."""
    return layer.projection() if hasattr(layer, "projection") else layer.weight  # type: ignore[operator]


def _bias(layer: nn.Linear) -> torch.Tensor | None:
    return layer.bias  # typed as if every layer had one


class LinearCrossEntropy(torch.autograd.Function):
    """The sum over rows of the cross-entropy of `linear(hidden, weight, bias)` with the targets, fp32.

    Some hundred rows at a time, and with the gradient (softmax minus one-hot) computed on the way, so that no logits
    are kept or computed twice. A frozen weight gets none.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        low_weight: torch.Tensor,
    ) -> torch.Tensor:
        """hidden: [rows, size]; weight: [vocabulary, size], and in hidden's precision `low_weight`; targets: [rows]."""
        wanted = ctx.needs_input_grad
        scale = _FP16_SCALE if hidden.dtype == torch.float16 else 1.0
        total = torch.zeros((), device=hidden.device)
        of_hidden = torch.empty_like(hidden) if wanted[0] else None
        of_weight = torch.zeros_like(weight, dtype=torch.float32) if wanted[1] else None
        of_bias = torch.zeros_like(weight[:, 0], dtype=torch.float32) if wanted[2] else None
        # The same memory for all rows: to take it anew would cost more than to compute in it.
        step = rows_at_a_time(hidden.device.type != "cpu", len(weight))
        low = hidden.new_empty(min(step, len(hidden)), len(weight))
        logits = low if low.dtype == torch.float32 else torch.empty_like(low, dtype=torch.float32)
        shares = torch.empty_like(logits)
        for start in range(0, len(hidden), step):
            rows, target = hidden[start : start + step], targets[start : start + step, None]
            some_low, some, slopes = (each[: len(rows)] for each in (low, logits, shares))
            torch.mm(rows, low_weight.T, out=some_low)
            if bias is not None:
                some_low += bias.to(low.dtype)
            if low is not logits:
                some.copy_(some_low)
            torch.softmax(some, 1, out=slopes)
            # The largest share tells the sum of exponentials: no share is too small for a logarithm.
            sums = some.amax(1) - slopes.amax(1).log()
            total += (sums - some.gather(1, target)[:, 0]).sum()
            if not any(wanted[:3]):
                continue
            slopes.scatter_add_(1, target, slopes.new_full(target.shape, -1))
            if of_bias is not None:
                of_bias += slopes.sum(0)
            if low is not logits:
                slopes = some_low.copy_(slopes if scale == 1 else slopes.mul_(scale))
            if of_hidden is not None:
                torch.mm(slopes, low_weight, out=of_hidden[start : start + len(rows)])
            if of_weight is not None and low is logits:
                of_weight.addmm_(slopes.T, rows)
            elif of_weight is not None:
                of_weight += slopes.T @ rows
        ctx.save_for_backward(of_hidden, of_weight, of_bias)
        ctx.scale, ctx.dtypes = scale, (weight.dtype, bias.dtype if bias is not None else None)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients of hidden, weight and bias, for that of the sum."""
        of_hidden, of_weight, of_bias = ctx.saved_tensors
        (grad,) = grads
        if of_hidden is not None:
            of_hidden = of_hidden * (grad / ctx.scale).to(of_hidden.dtype)
        if of_weight is not None:
            of_weight = of_weight.mul_(grad / ctx.scale).to(ctx.dtypes[0])
        if of_bias is not None:
            of_bias = of_bias.mul_(grad).to(ctx.dtypes[1])
        return of_hidden, of_weight, of_bias, None, None


def _kernel(device: str, dtype: torch.dtype) -> Callable[..., torch.Tensor] | None:
    """Liger's kernel for the same, on CUDA, where it is installed and shown to compute the same."""
    return _liger if device == "cuda" and dtype != torch.float16 and _liger_is_right(dtype) else None


def _liger(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy  # type: ignore[import-not-found]

    found: torch.Tensor = liger_fused_linear_cross_entropy(hidden, weight, targets, bias=bias, reduction="sum")
    return found.float()


@cache
def _liger_is_right(dtype: torch.dtype) -> bool:
    """Whether loss and gradients are those of torch's own, up to the precision's rounding."""
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        hidden, weight = (torch.randn(n, 64, device="cuda").to(dtype).requires_grad_() for n in (16, 128))
        targets = torch.arange(16, device="cuda")
        logits = linear(hidden, weight).float()
        try:
            both = _liger(hidden, weight, targets, None), cross_entropy(logits, targets, reduction="sum")
            mine, expected = ([loss, *torch.autograd.grad(loss, [hidden, weight])] for loss in both)
        except Exception:  # not installed, or not for this GPU
            return False
    near = 5e-2 if dtype == torch.bfloat16 else 1e-3
    return all(torch.allclose(a.float(), b.float(), rtol=near, atol=near) for a, b in zip(mine, expected, strict=True))
