"""Baichuan's tokenizer: sentencepiece, called directly."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from transformers import AddedToken, BatchEncoding
from transformers.tokenization_utils_base import TruncationStrategy
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend
from transformers.utils.generic import PaddingStrategy

USER, ASSISTANT = 195, 196
"""The ids that open a turn: reserved pieces of the published vocabularies."""

_PATTERNS = {(False, False): "none", (True, False): "bos", (False, True): "eos", (True, True): "bos_eos"}
_MORE = (
    "return_tensors",
    "return_token_type_ids",
    "return_overflowing_tokens",
    "return_special_tokens_mask",
    "return_offsets_mapping",
    "return_length",
    "is_split_into_words",
)


class BaichuanTokenizer(SentencePieceBackend):
    """Text becomes the ids that sentencepiece gives, and ids become their text, every space of it.

    The pieces of ids 0, 1, 2, 195 and 196 are control tokens. Spelt out in a text they are read as such; with
    `split_special_tokens=True` they are text, whatever the vocabulary declares them to be. `skip_special_tokens`
    leaves them out.
    """

    vocab_files_names = {"vocab_file": "tokenizer.model"}  # noqa: RUF012
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012
    padding_side = "left"

    def __init__(self, vocab_file: str, add_bos_token: bool = True, add_eos_token: bool = False, **kwargs: Any) -> None:
        pieces = SentencePieceProcessor(model_file=vocab_file)
        self.add_bos_token, self.add_eos_token = add_bos_token, add_eos_token
        kwargs.pop(
            "auto_map", None
        )  # names Python files, which are never run and which a saved directory does not hold
        # What files say of spaces beside them is not kept: control tokens stand directly before text.
        for name, index in (("unk_token", 0), ("bos_token", 1), ("eos_token", 2), ("pad_token", 0)):
            kwargs[name] = _control(kwargs.get(name) or pieces.id_to_piece(index))
        turns = [pieces.id_to_piece(index) for index in (USER, ASSISTANT) if index < len(pieces)]
        others = [str(token) for token in kwargs.pop("extra_special_tokens", None) or []]
        super().__init__(  # type: ignore[no-untyped-call]
            **kwargs,
            vocab_file=vocab_file,
            extra_special_tokens=[_control(token) for token in dict.fromkeys([*others, *turns])],
            special_tokens_pattern=_PATTERNS[add_bos_token, add_eos_token],
        )
        self.sp_model = _text_only(self.sp_model, [i for i in self.all_special_ids if i < len(pieces)])

    def get_vocab(self) -> dict[str, int]:
        """Every piece and added token with its id."""
        pieces = self.sp_model.id_to_piece(list(range(self.vocab_size)))
        return {piece: index for index, piece in enumerate(pieces)} | self._added_tokens_encoder

    def _encode_plus(  # type: ignore[override]
        self, text: Any, text_pair: Any = None, **options: Any
    ) -> BatchEncoding:
        plain = (
            options.get("split_special_tokens", self.split_special_tokens)
            and text_pair is None
            and isinstance(text, list)
            and all(isinstance(each, str) for each in text)
            and options.get("padding_strategy", PaddingStrategy.DO_NOT_PAD) == PaddingStrategy.DO_NOT_PAD
            and options.get("truncation_strategy") in (None, TruncationStrategy.DO_NOT_TRUNCATE)
            and not any(options.get(name) for name in _MORE)
        )
        if not plain:
            return super()._encode_plus(text, text_pair, **options)
        # All texts in one call, which is several times faster than piece by piece.
        rows = self.sp_model.encode(text)
        if options.get("add_special_tokens", True):
            rows = [self.build_inputs_with_special_tokens(row) for row in rows]
        encoding = {"input_ids": rows}
        if options.get("return_attention_mask") is not False:
            encoding["attention_mask"] = [[1] * len(row) for row in rows]
        return BatchEncoding(encoding)

    def _decode(  # type: ignore[override]
        self, token_ids: int | list[int], skip_special_tokens: bool = False, **_: Any
    ) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        left_out = set(self.all_special_ids) if skip_special_tokens else set()
        added = self._added_tokens_decoder
        text = ""
        for is_added, run in groupby((int(i) for i in ids), added.__contains__):
            if is_added:
                text += "".join(added[i].content for i in run if i not in left_out)
            else:
                text += self.sp_model.decode(list(run))
        return text

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of the pieces, control tokens by their names."""
        return self._decode(self.convert_tokens_to_ids(tokens))

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> tuple[str, ...]:
        """Write tokenizer.model and the configuration, from which `from_pretrained` makes the same tokenizer."""
        files: tuple[str, ...] = super().save_pretrained(save_directory, *args, **kwargs)
        # transformers leaves these two out, and the published code adds a start token where they are not given.
        config = next(Path(file) for file in files if file.endswith("tokenizer_config.json"))
        content = json.loads(config.read_text("utf-8"))
        content |= {"add_bos_token": self.add_bos_token, "add_eos_token": self.add_eos_token}
        config.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")
        return files


class BaiChuanTokenizer(BaichuanTokenizer):
    """The same, as the 7B's files name it."""


def _control(token: str | AddedToken) -> AddedToken:
    return AddedToken(str(token), single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)


def _text_only(pieces: SentencePieceProcessor, controls: list[int]) -> SentencePieceProcessor:
    """The same pieces, of which no text becomes one of the control tokens: a vocabulary may declare them as words."""

    def found_in_text(index: int) -> bool:
        # The bytes C0 and C1 occur in no text; where a small vocabulary has them at 195 and 196 they stay bytes.
        return not (pieces.is_control(index) or pieces.is_unknown(index) or pieces.is_byte(index))

    declared = [index for index in controls if found_in_text(index)]
    if not declared:
        return pieces
    from sentencepiece import sentencepiece_model_pb2

    pb2: Any = sentencepiece_model_pb2  # generated: its messages are unknown to a type checker
    proto = pb2.ModelProto.FromString(pieces.serialized_model_proto())
    for index in declared:
        proto.pieces[index].type = pb2.ModelProto.SentencePiece.CONTROL
    return SentencePieceProcessor(model_proto=proto.SerializeToString())
