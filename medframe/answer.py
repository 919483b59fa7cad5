"""A model's answers to conversations, as text."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from medframe.dataset import Turn
from medframe.decoding import Decoding
from medframe.encode import Encoder
from medframe.errors import PromptError
from medframe.tokens import resolve


class Answerer:
    """A model and the prompt format that it was trained with."""

    def __init__(self, model: Any, encoder: Encoder) -> None:
        self.model = model
        self.encoder = encoder
        tokenizer = encoder.tokenizer
        self.ends = frozenset(i for token in ("eos", *encoder.prompt.stop) for i in resolve(token, tokenizer))
        config = model.config.get_text_config()
        # Where positions have no end (ALiBi), the length that the model was trained with keeps the memory from filling.
        self.context: int | None = getattr(config, "max_position_embeddings", None) or getattr(
            config, "model_max_length", None
        )

    def question(self, turns: Sequence[Turn], max_new_tokens: int) -> list[int]:
        """The ids to answer, the oldest rounds left out where the context would not hold them and the answer.

        PromptError when the last question does not fit, or the format cannot lay the turns out.
        """
        if self.context and self.context <= max_new_tokens:
            raise PromptError(f"{max_new_tokens} new tokens leave no room in the model's context of {self.context}")
        return self.encoder.question(turns, self.context - max_new_tokens if self.context else None)

    def answer(self, turns: Sequence[Turn], decoding: Decoding = Decoding(), seed: int = 0) -> str:
        """The whole answer to the last user turn."""
        return "".join(self.stream(turns, decoding, seed)).strip()

    def stream(
        self, turns: Sequence[Turn], decoding: Decoding = Decoding(), seed: int = 0
    ) -> Generator[str, None, None]:
        """The answer piece by piece; PromptError as `question` says. Closing the iterator ends the generation."""
        yield from self.continued(self.question(turns, decoding.max_new_tokens), decoding, seed)

    def continued(
        self, ids: Sequence[int], decoding: Decoding = Decoding(), seed: int = 0
    ) -> Generator[str, None, None]:
        """What the model writes after these ids, piece by piece. By a beam search it comes as one piece."""
        from medframe.engine.beams import searched
        from medframe.engine.engine import Engine
        from medframe.engine.request import Request
        from medframe.engine.text import Text

        request = Request(list(ids), decoding, self.ends, seed)
        text = Text(self.encoder.tokenizer, decoding.stop)
        if decoding.num_beams > 1:
            searched(self.model, [request])
            yield text.add(request.tokens) + text.end()
            return
        engine = Engine(self.model)
        engine.add(request)
        told = 0
        while not (request.finish or text.stopped):
            engine.step()
            if piece := text.add(request.tokens[told:]):
                yield piece
            told = len(request.tokens)
        if rest := text.end():
            yield rest
