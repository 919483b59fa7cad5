"""What stands beside the weights of a merged model: tokenizer, configuration, how it answers, the base's licence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from medframe.encode import Encoder
from medframe.errors import PromptError
from medframe.merge.plan import Plan
from medframe.merge.skeleton import Skeleton
from medframe.merge.sources import Sources
from medframe.merge.tensors import DTYPES
from medframe.tokens import resolve

_LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
_DECODING = (
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "num_beams",
    "max_length",
    "max_new_tokens",
)
"""What generation_config.json says of how tokens are chosen."""


def write_beside(folder: Path, found: Sources, config: Any, model: Skeleton, plan: Plan) -> None:
    """Write into the folder all that transformers reads beside the weights. `config` is the base model's."""
    tokenizer = found.tokenizer
    stop: set[int] = set(resolve("eos", tokenizer))
    if found.prompt is not None:
        bound = Encoder(found.prompt, tokenizer).prompt
        stop |= {i for token in bound.stop for i in resolve(token, tokenizer)}
        try:
            tokenizer.chat_template = bound.chat_template(tokenizer)
        except PromptError:
            tokenizer.chat_template = None  # the tokenizer's own lays conversations out as nothing was trained
    tokenizer.save_pretrained(folder)
    text = config.get_text_config()
    text.vocab_size = model.rows
    config.dtype = text.dtype = DTYPES[plan.dtype]
    config.architectures = [model.architecture]
    if model.tied and not plan.tied:
        config.tie_word_embeddings = text.tie_word_embeddings = False
    config.save_pretrained(folder)
    base = found.backbone.directory()
    content = _generation(base / "generation_config.json", found, sorted(stop))
    (folder / "generation_config.json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    for pattern in _LICENCES:
        for file in base.glob(pattern):
            shutil.copyfile(file, folder / file.name)


def _generation(file: Path, found: Sources, stop: list[int]) -> dict[str, Any]:
    """The base model's settings, with the tokens that end an answer, and how it is decoded, where a run says it."""
    content: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    before = content.get("eos_token_id")
    if found.prompt is None and isinstance(before, int | list):
        # Nobody has said how it is spoken to: what ended an answer of the base may go on to.
        stop = sorted({*stop, *([before] if isinstance(before, int) else before)})
    tokenizer, decoding = found.tokenizer, found.decoding
    content |= {"eos_token_id": stop[0] if len(stop) == 1 else stop, "pad_token_id": tokenizer.pad_token_id}
    if tokenizer.bos_token_id is not None:
        content["bos_token_id"] = tokenizer.bos_token_id
    if decoding is not None:
        content = {name: value for name, value in content.items() if name not in _DECODING}
        content |= {"do_sample": decoding.temperature > 0, "max_new_tokens": decoding.max_new_tokens}
        if decoding.temperature > 0:
            # Without these, transformers draws among the 50 likeliest.
            content |= {"temperature": decoding.temperature, "top_k": decoding.top_k or 0, "top_p": decoding.top_p}
        if decoding.repetition_penalty != 1:
            content["repetition_penalty"] = decoding.repetition_penalty
        if decoding.num_beams > 1:
            content["num_beams"] = decoding.num_beams
    return content
