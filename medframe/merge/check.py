"""Base and adapters through peft, and the merged model: what each computes for the same conversations."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from medframe.backbone import Backbone
from medframe.dataset import Turn
from medframe.encode import Encoder
from medframe.errors import ProofError
from medframe.merge.sources import Sources
from medframe.weights import PICKLES, attach, grow

if TYPE_CHECKING:
    import torch

_QUESTIONS = ("头痛三天了怎么办？", "孩子发烧 38.5℃，咳嗽，要不要拍 CT？", "胃疼，吃什么药好？")


def check_logits(backbone: Backbone, merged: Path, found: Sources, say: Callable[[str], None]) -> dict[str, Any]:
    """Compare the logits of the backbone, its last adapter not merged, with those of the merged model on disk.

    Returns how far they are apart; ProofError when that is more than rounding explains. Both models are held in turn.
    """
    import torch

    ids = [torch.tensor(each) for each in _prompts(found)]
    with _readable(backbone) as readable:
        expected = _logits(_unmerged(readable), ids)
    gc.collect()
    whole = replace(backbone, weights=str(merged), tokenizer=None, adapters=[], dtype="auto")
    model = whole.load_model()
    actual = _logits(model, ids)
    low = model.dtype in (torch.float16, torch.bfloat16)
    apart = max(float((one - two).abs().max()) for one, two in zip(expected, actual, strict=True))
    largest = max(float(one.abs().max()) for one in expected)
    same = sum(int((one.argmax(-1) == two.argmax(-1)).sum()) for one, two in zip(expected, actual, strict=True))
    places = sum(len(each) for each in ids)
    say(
        f"Logits of base and adapters through peft: {apart:.1e} apart at most, of {largest:.1f}; the likeliest token "
        f"is the same at {same} of {places} places."
    )
    # Adapters that are not merged are added in float32, merged they are rounded to what the model is stored in.
    if not apart <= (5e-2 if low else 1e-4) * max(1.0, largest):
        raise ProofError(f"the merged model computes something else than base and adapters: logits {apart:.1e} apart")
    return {"apart": apart, "largest": largest, "places": places, "same_token": same}


def _prompts(found: Sources) -> list[list[int]]:
    if found.prompt is None:
        return [list(found.tokenizer(text)["input_ids"]) for text in _QUESTIONS]
    encoder = Encoder(found.prompt, found.tokenizer)
    return [encoder.question([Turn("user", text)]) for text in _QUESTIONS]


def _unmerged(backbone: Backbone) -> Any:
    """The model with all adapters but the last merged by peft, and the last beside it."""
    *first, last = backbone.adapters or [""]
    model = replace(backbone, adapters=first).load_model()
    if not last:
        return model
    grow(model, Path(last))
    return attach(model, Path(last))


def _logits(model: Any, ids: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    from medframe.proof import logits

    return [logits(model.eval(), each) for each in ids]


@contextmanager
def _readable(backbone: Backbone) -> Iterator[Backbone]:
    """The backbone with its adapters under the names by which peft finds their files."""
    with TemporaryDirectory(prefix="medframe-merge-") as folder:
        directories = []
        for number, directory in enumerate(backbone.adapter_directories()):
            beside = Path(folder) / str(number)
            beside.mkdir()
            for file in directory.iterdir():
                (beside / file.name).symlink_to(file.resolve())
            if not any((beside / name).exists() for name in ("adapter_model.safetensors", PICKLES[0])):
                (beside / PICKLES[1]).rename(beside / PICKLES[0])
            directories.append(str(beside))
        yield replace(backbone, adapters=directories)
