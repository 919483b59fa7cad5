"""Continuous batching: every step gives each answer its next token, and answers come and go between steps."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache

from medframe.engine.cache import joined
from medframe.engine.choice import choose
from medframe.engine.request import Request
from medframe.errors import BackboneError

PREFILL = 512
"""Tokens of questions that are read between two steps, so that a long question keeps nobody waiting for long."""
_ROOM = 64
"""Columns that a cache has for the tokens to come."""
_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}


@dataclass(slots=True)
class _Arriving:
    """A question that is being read."""

    request: Request
    cache: Cache
    read: int = 0


class Engine:
    """A model that answers requests side by side, each as if it were alone.

    A question is read by itself, without padding; the answers are then written together, one token each a step, over
    a cache that is padded at its left. It works with every causal language model of transformers whose layers are
    attention, ALiBi or rotary, and draws each answer by its own seed. transformers' own continuous batching has paged
    attention, in which ALiBi has no place, one random state for all, and on a CPU it is slower than one answer at a
    time (tests/benchmarks/engine.py).
    """

    def __init__(
        self,
        model: Any,
        tokens: int = 16384,
        rows: int = 64,
        using: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        """`tokens` and `rows` are the most that its cache may come to hold; `using` surrounds each step.

        BackboneError for a model whose layers keep something else than keys and values.
        """
        self.model, self.tokens, self.rows, self._using = model.eval(), tokens, rows, using
        config = model.config.get_text_config()
        if strange := sorted({*(getattr(config, "layer_types", None) or ())} - _ATTENTION):
            raise BackboneError(f"answers of this model cannot be written side by side: it has layers of {strange[0]}")
        forward = inspect.signature((model.get_base_model() if hasattr(model, "peft_config") else model).forward)
        if "past_key_values" not in forward.parameters:  # RWKV, which carries a state on instead
            raise BackboneError("answers of this model cannot be written side by side: it keeps no keys and values")
        takes_any = any(p.kind == p.VAR_KEYWORD for p in forward.parameters.values())
        self._takes = {n for n in ("position_ids", "logits_to_keep") if takes_any or n in forward.parameters}
        self._arriving: deque[_Arriving] = deque()
        self._live: list[Request] = []
        self._lengths: list[int] = []
        """Tokens of each live request that are in the cache."""
        self._cache: Cache | None = None
        self._left = 0
        """Columns for which the cache has room."""

    def __len__(self) -> int:
        """Requests that have not ended."""
        return len(self._live) + len(self._arriving)

    def fits(self, request: Request) -> bool:
        """Whether there is room beside those that are being answered. Alone, any request fits."""
        others = [*self._live, *(arriving.request for arriving in self._arriving)]
        longest = max(each.longest for each in (*others, request))
        return not others or (len(others) < self.rows and (len(others) + 1) * longest <= self.tokens)

    def add(self, request: Request) -> None:
        """Answer this one too, from the next step on."""
        self._arriving.append(_Arriving(request, DynamicCache()))

    def drop(self, request: Request) -> None:
        """Answer this one no further."""
        self._arriving = deque(each for each in self._arriving if each.request is not request)
        if request in self._live:
            self._keep([each is not request for each in self._live])

    def clear(self) -> None:
        """Forget all of them."""
        self._arriving.clear()
        self._live, self._lengths, self._cache, self._left = [], [], None, 0

    @torch.no_grad()
    def step(self) -> list[Request]:
        """Read some of what arrives and write one token of each answer; the requests that went on or ended by it."""
        with self._using():
            # Those that are live write their next token without those that are still to join them.
            ready = self._read()
            went_on = self._write()
        if begun := [each for each in ready if not each.request.finish]:
            self._arrange(begun)
        if any(request.finish for request in self._live):
            self._keep([not request.finish for request in self._live])
        return [*went_on, *(each.request for each in ready)]

    def _read(self) -> list[_Arriving]:
        """Those whose questions have been read to the end; each then has its first token."""
        left, ready = PREFILL, list[_Arriving]()
        while self._arriving and left > 0:
            first = self._arriving[0]
            part = first.request.ids[first.read : first.read + left]
            logits = self._logits([part], first.cache, [first.read + len(part)])
            left, first.read = left - len(part), first.read + len(part)
            if first.read == len(first.request.ids):
                self._arriving.popleft()
                choose(logits, [first.request])
                ready.append(first)
        return ready

    def _write(self) -> list[Request]:
        went_on = list(self._live)
        if went_on:
            if not self._left:
                self._arrange([])
            assert self._cache is not None
            lengths = [length + 1 for length in self._lengths]
            logits = self._logits([[request.tokens[-1]] for request in went_on], self._cache, lengths)
            self._lengths, self._left = lengths, self._left - 1
            choose(logits, went_on)
        return went_on

    def _logits(self, ids: Sequence[Sequence[int]], cache: Cache, lengths: Sequence[int]) -> torch.Tensor:
        """Those after the last of `ids`, [rows, vocabulary]; a row then holds so many tokens, at the cache's end."""
        device = self.model.device
        told = torch.tensor(ids, device=device)
        ends = torch.tensor(lengths, device=device)[:, None]
        columns = cache.get_seq_length() + told.shape[1]
        mask = (torch.arange(columns, device=device) >= columns - ends).long()
        more: dict[str, Any] = {
            "logits_to_keep": 1,
            "position_ids": ends + torch.arange(-told.shape[1], 0, device=device),
        }
        more = {name: value for name, value in more.items() if name in self._takes}
        out = self.model(input_ids=told, attention_mask=mask, past_key_values=cache, use_cache=True, **more)
        logits: torch.Tensor = out.logits[:, -1]
        return logits

    def _keep(self, kept: Sequence[bool]) -> None:
        """Leave the others out."""
        rows = [row for row, keep in enumerate(kept) if keep]
        cache, lengths = self._cache, self._lengths
        self._live, self._lengths = [self._live[row] for row in rows], [lengths[row] for row in rows]
        if not rows or cache is None:
            self._cache, self._left = None, 0
            return
        self._join([(cache, row, lengths[row]) for row in rows])

    def _arrange(self, arriving: Sequence[_Arriving]) -> None:
        """Take these in, and make room for columns to come."""
        rows = [(self._cache, row, length) for row, length in enumerate(self._lengths) if self._cache is not None]
        self._live += [each.request for each in arriving]
        self._lengths += [each.read for each in arriving]
        self._join([*rows, *((each.cache, 0, each.read) for each in arriving)])

    def _join(self, rows: Sequence[tuple[Cache, int, int]]) -> None:
        self._left = _ROOM
        self._cache = joined(rows, self._left)
