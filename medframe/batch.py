"""Examples -> micro-batches: packed, padded or in blocks; the same order for the same seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, overload

from medframe.errors import BackboneError, RecipeError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from medframe.dataset import Where
    from medframe.flops import Load
    from medframe.store import Examples

    MicroBatch = dict[str, torch.Tensor]

Kind = Literal["packed", "padded", "blocks"]


@dataclass(kw_only=True)
class Batching:
    """How examples fill a micro-batch."""

    kind: Literal["auto", "packed", "padded", "blocks"] = "auto"
    """packed: in one row, kept apart | padded | blocks: ChatMed's concatenate and cut | auto: packed, else padded."""
    tokens: int | None = None
    """packed: most tokens in a micro-batch (8192)."""
    rows: int | None = None
    """padded: samples in a micro-batch (8). blocks: blocks in a micro-batch (1)."""
    length: int | None = None
    """blocks: tokens in a block (512)."""
    map_batch: int | None = None
    """blocks: samples joined at a time, the rest of each join dropped (published: 1000); null: all, none dropped."""

    def __post_init__(self) -> None:
        read = {
            "auto": ("tokens", "rows"),
            "packed": ("tokens",),
            "padded": ("rows",),
            "blocks": ("length", "rows", "map_batch"),
        }[self.kind]
        for name in ("tokens", "rows", "length", "map_batch"):
            value = getattr(self, name)
            if value is not None and name not in read:
                raise ValueError(f"{name} is not read by kind {self.kind}, which takes {', '.join(read)}")
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")


@dataclass(frozen=True)
class Selection:
    """Some examples of one store, and how often an epoch holds each."""

    examples: Examples
    indices: NDArray[np.int64]
    weight: float = 1.0


class Batches:
    """Micro-batches over some selections. `epoch(n)` gives those of the n-th pass, in an order of its own."""

    def __init__(
        self,
        selections: Sequence[Selection],
        batching: Batching,
        pad: int,
        seed: int,
        shuffle: bool = True,
    ) -> None:
        self.selections = tuple(selections)
        self.batching = batching
        self.pad = pad
        self.seed = seed
        self.shuffle = shuffle
        self.kind: Kind = "packed" if batching.kind == "auto" else batching.kind
        self.reason: str | None = None
        """Why `auto` pads, where it does."""
        self.seen: Callable[[MicroBatch], None] | None = None
        """Told of every micro-batch that is built in this process."""
        if self.kind == "packed":
            self._check_lengths()
        if self.kind == "blocks" and any(selection.weight != 1 for selection in selections):
            raise RecipeError("data: weight is not read by batching.kind blocks, which takes every example once")

    def suit(self, model: PreTrainedModel, gather: Callable[[str | None], list[str | None]] | None = None) -> None:
        """Prove that this model keeps packed samples apart; where not, `auto` pads and `packed` is a BackboneError.

        It attends sample by sample from then on, where that is shown to be what it computed before.

        `gather` collects what every process has found: they all pad where one must.
        """
        from medframe.attention import quicken
        from medframe.isolation import leak

        if self.kind != "packed":
            return
        quicken(model)
        found = leak(model)
        self.reason = next(filter(None, gather(found)), None) if gather else found
        if self.reason and self.batching.kind == "packed":
            raise BackboneError(f"batching.kind=packed: {self.reason}; use batching.kind=padded")
        if self.reason:
            self.kind = "padded"

    def epoch(self, number: int) -> Epoch:
        """The micro-batches of the pass `number`, counted from 0: a sequence, each built as it is asked for."""
        if self.kind == "blocks":
            return Epoch(self, self._blocks(number))
        order = self._order(number)
        return Epoch(self, self._packs(order) if self.kind == "packed" else self._chunks(order, self.rows))

    @property
    def rows(self) -> int:
        """Samples or blocks in a micro-batch that is not packed."""
        return self.batching.rows or (1 if self.kind == "blocks" else 8)

    def __len__(self) -> int:
        """Examples in an epoch of weight 1."""
        return sum(len(selection.indices) for selection in self.selections)

    def longest(self) -> tuple[int, Where | None]:
        """The tokens of the longest example, and the row that it came from."""
        found: tuple[int, Where | None] = (0, None)
        for selection in (selection for selection in self.selections if len(selection.indices)):
            lengths = selection.examples.lengths[selection.indices]
            if lengths.max() > found[0]:
                found = int(lengths.max()), selection.examples.where(int(selection.indices[lengths.argmax()]))
        return found

    def dropped(self) -> int:
        """Tokens that blocks leave out of every epoch."""
        if self.kind != "blocks":
            return 0
        used = sum(end - start for start, end in self._block_spans())
        return int(self.joined_ends[-1]) - used

    def _order(self, number: int) -> NDArray[np.int64]:
        """(selection, index) of every example of the epoch, int64 [n, 2]."""
        import numpy as np

        # RandomState's stream is frozen for good; that of default_rng may change with NumPy.
        random = np.random.RandomState([self.seed, number])
        parts = []
        for which, selection in enumerate(self.selections):
            whole, fraction = divmod(selection.weight, 1) if self.shuffle else (1, 0)
            indices = np.tile(selection.indices, int(whole))
            if extra := round(fraction * len(selection.indices)):
                indices = np.concatenate([indices, random.permutation(selection.indices)[:extra]])
            parts.append(np.stack([np.full(len(indices), which), indices], axis=1))
        order = np.concatenate(parts)
        return random.permutation(order) if self.shuffle else order

    def _packs(self, order: NDArray[np.int64]) -> list[Any]:
        import numpy as np

        limit = self.batching.tokens or 8192
        lengths = np.zeros(len(order), np.int64)
        for which, selection in enumerate(self.selections):
            mine = order[:, 0] == which
            lengths[mine] = selection.examples.lengths[order[mine, 1]]
        borders, room = [], 0
        for position, length in enumerate(lengths.tolist()):
            if length > room:
                borders.append(position)
                room = limit
            room -= length
        return [order[start:end] for start, end in pairwise([*borders, len(order)])]

    def _chunks(self, items: Any, size: int) -> list[Any]:
        return [items[i : i + size] for i in range(0, len(items), size)]

    def _blocks(self, number: int) -> list[Any]:
        import numpy as np

        spans = self._block_spans()
        if self.shuffle:
            spans = np.random.RandomState([self.seed, number]).permutation(np.array(spans)).tolist()
        return self._chunks(spans, self.rows)

    def _block_spans(self) -> list[tuple[int, int]]:
        """Where each block begins and ends in all tokens joined, as ChatMed's `group_texts` cuts them."""
        length, join = self.batching.length or 512, self.batching.map_batch
        ends = [0, *self.joined_ends.tolist()]
        spans: list[tuple[int, int]] = []
        for first in range(0, len(ends) - 1, join or len(ends)):
            start, end = ends[first], ends[min(first + (join or len(ends)), len(ends) - 1)]
            if join and end - start >= length:
                end -= (end - start) % length
            spans += [(at, min(at + length, end)) for at in range(start, end, length)]
        return spans

    def example(self, position: int) -> tuple[Examples, int]:
        """The store and the index there of the example at `position` in the order of the files."""
        for selection in self.selections:
            if position < len(selection.indices):
                return selection.examples, int(selection.indices[position])
            position -= len(selection.indices)
        raise IndexError(position)

    @cached_property
    def joined_ends(self) -> NDArray[np.int64]:
        """Where each example ends in all tokens joined, in the order of the files."""
        import numpy as np

        lengths = [selection.examples.lengths[selection.indices] for selection in self.selections]
        return np.cumsum(np.concatenate(lengths))

    def _check_lengths(self) -> None:
        limit = self.batching.tokens or 8192
        length, where = self.longest()
        if length > limit:
            raise RecipeError(
                f"batching.tokens is {limit}, but {where} takes {length} tokens; "
                "raise batching.tokens or lower limits.max_length"
            )


class Epoch(Sequence["MicroBatch"]):
    """One pass over the examples."""

    def __init__(self, batches: Batches, plan: list[Any]) -> None:
        self._batches = batches
        self._plan = plan

    def __len__(self) -> int:
        return len(self._plan)

    @overload
    def __getitem__(self, index: int) -> MicroBatch: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[MicroBatch]: ...
    def __getitem__(self, index: int | slice) -> MicroBatch | Sequence[MicroBatch]:
        """The micro-batch: `input_ids` and `labels`, int64 [rows, length], labels -100 where nothing is learnt;

        and with them `position_ids` where samples are packed, `attention_mask` where they are padded.
        """
        if isinstance(index, slice):
            return Epoch(self._batches, self._plan[index])
        samples = [self._arrays(item) for item in self._plan[index]]
        batch = packed(samples) if self._batches.kind == "packed" else padded(samples, self._batches.pad)
        if self._batches.seen:
            self._batches.seen(batch)
        return batch

    def loads(self) -> list[Load]:
        """What each micro-batch asks for, told from the lengths alone; of blocks, each is built."""
        from medframe.flops import Load, load_of

        if self._batches.kind == "blocks":
            return [load_of(batch) for batch in self]
        stores = [selection.examples for selection in self._batches.selections]
        found = []
        for items in self._plan:
            lengths = [int(stores[which].lengths[i]) for which, i in items]
            tokens = sum(lengths)
            slots = tokens if self._batches.kind == "packed" else max(lengths) * len(lengths)
            supervised = sum(int(stores[which].supervised[i]) for which, i in items)
            found.append(Load(tokens, slots, supervised, sum(n * (n + 1) // 2 for n in lengths)))
        return found

    def where(self, index: int) -> list[Where]:
        """The rows that a packed or padded micro-batch is made of."""
        selections = self._batches.selections
        return [selections[which].examples.where(i) for which, i in self._plan[index]]

    def _arrays(self, item: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        batches = self._batches
        if batches.kind != "blocks":
            selection = batches.selections[item[0]].examples
            return selection.ids(item[1]), selection.trained(item[1])
        return self._slice(*item)

    def _slice(self, start: int, end: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """The tokens from `start` to `end` of all tokens joined."""
        import numpy as np

        batches = self._batches
        ends = batches.joined_ends
        first, last = np.searchsorted(ends, [start, end - 1], side="right")
        chosen = [batches.example(i) for i in range(first, last + 1)]
        offset = start - (int(ends[first - 1]) if first else 0)
        ids = np.concatenate([examples.ids(i) for examples, i in chosen])[offset : offset + end - start]
        trained = np.concatenate([examples.trained(i) for examples, i in chosen])[offset : offset + end - start]
        return ids, trained


def packed(samples: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> MicroBatch:
    """The samples (ids, trained) in one row, positions starting anew at each: no `attention_mask` goes with it."""
    import numpy as np
    import torch

    ids = np.concatenate([ids for ids, _ in samples])
    labels = np.concatenate([_labels(ids, trained) for ids, trained in samples])
    # Nothing stands before the first token of a sample to predict it from: without this, the last token of one
    # patient would be trained to predict the first of the next.
    labels[np.cumsum([0, *(len(ids) for ids, _ in samples[:-1])])] = -100
    positions = np.concatenate([np.arange(len(ids)) for ids, _ in samples])
    columns = {"input_ids": ids, "labels": labels, "position_ids": positions}
    return {name: torch.from_numpy(column.astype(np.int64))[None] for name, column in columns.items()}


def padded(samples: Sequence[tuple[NDArray[Any], NDArray[Any]]], pad: int) -> MicroBatch:
    """The samples (ids, trained) one a row, padded on the right."""
    import torch

    width = max(len(ids) for ids, _ in samples)
    batch = {
        "input_ids": torch.full((len(samples), width), pad),
        "labels": torch.full((len(samples), width), -100),
        "attention_mask": torch.zeros((len(samples), width), dtype=torch.int64),
    }
    for row, (ids, trained) in enumerate(samples):
        batch["input_ids"][row, : len(ids)] = torch.from_numpy(ids.astype("int64"))
        batch["labels"][row, : len(ids)] = torch.from_numpy(_labels(ids, trained).astype("int64"))
        batch["attention_mask"][row, : len(ids)] = 1
    return batch


def _labels(ids: NDArray[Any], trained: NDArray[Any]) -> NDArray[Any]:
    """The ids where they are trained, else -100."""
    import numpy as np

    return np.where(trained, ids, -100)


def supervised(batch: MicroBatch) -> int:
    """Labels in the micro-batch that a prediction is made for."""
    return int((batch["labels"][:, 1:] != -100).sum())
