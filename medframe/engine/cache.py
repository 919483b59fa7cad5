"""Keys and values of several answers of different lengths, as one cache that ends at the same column for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer


class RowsLayer(DynamicLayer):
    """Keys and values of one layer, [rows, heads, columns, size], with room for columns to come.

    transformers' own layer is copied as a whole with every token.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, columns: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._room = (keys, values)
        self._use(columns)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write down the next columns; all of them."""
        start = self.columns
        self._use(start + key_states.shape[-2])
        for whole, new in ((self.keys, key_states), (self.values, value_states)):
            whole[:, :, start:] = new
        return self.keys, self.values

    def _use(self, columns: int) -> None:
        self.columns = columns
        self.keys: torch.Tensor = self._room[0][:, :, :columns]
        self.values: torch.Tensor = self._room[1][:, :, :columns]


def joined(rows: Sequence[tuple[Cache, int, int]], room: int) -> Cache:
    """One cache of these rows, (cache, its row, tokens at its end), with room for as many columns more.

    Shorter rows begin later: their first columns are zeros, which the attention mask has to leave out.
    """
    width = max(tokens for _, _, tokens in rows)
    layers: list[Any] = []
    for number in range(len(rows[0][0].layers)):
        both = []
        for name in ("keys", "values"):
            parts = [getattr(cache.layers[number], name)[row, :, -tokens:] for cache, row, tokens in rows]
            heads, _, size = parts[0].shape
            whole = parts[0].new_zeros(len(parts), heads, width + room, size)
            for row, part in enumerate(parts):
                whole[row, :, width - part.shape[1] : width] = part
            both.append(whole)
        layers.append(RowsLayer(both[0], both[1], width))
    return Cache(layers=layers)
