"""A model's answers to conversations, as text."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from medframe.dataset import Turn
from medframe.decoding import USUAL, Decoding
from medframe.encode import Encoder
from medframe.tokens import resolve

if TYPE_CHECKING:
    from medframe.engine.request import Request


class Answerer:
    """A model and the prompt format that it was trained with.

    Where the model answers elsewhere it is None, and its configuration is given: `request` is all there is then.
    """

    def __init__(self, model: Any, encoder: Encoder, config: Any = None) -> None:
        self.model = model
        self.encoder = encoder
        tokenizer = encoder.tokenizer
        self.ends = frozenset(i for token in ("eos", *encoder.prompt.stop) for i in resolve(token, tokenizer))
        config = (config or model.config).get_text_config()
        # Where positions have no end (ALiBi), the length that the model was trained with keeps the memory from filling.
        self.context: int | None = getattr(config, "max_position_embeddings", None) or getattr(
            config, "model_max_length", None
        )

    def request(self, turns: Sequence[Turn], decoding: Decoding = USUAL, seed: int | str = 0) -> Request:
        """What the engine needs to answer the last user turn.

        The question has the context less `max_new_tokens`, and at least half of it (as in Baichuan's own chat); the
        oldest rounds are left out until it fits, and the answer is as long as there is then room. PromptError when the
        last question does not fit, or the format cannot lay the turns out.
        """
        context, longest = self.context, decoding.max_new_tokens
        ids = self.encoder.question(turns, max(context // 2, context - longest) if context else None)
        return self.after(ids, decoding, seed)

    def after(self, ids: Sequence[int], decoding: Decoding, seed: int | str = 0) -> Request:
        """What the engine needs to go on after these ids, as far as the context reaches."""
        from medframe.engine.request import Request

        room = self.context - len(ids) if self.context else decoding.max_new_tokens
        if room < decoding.max_new_tokens:
            decoding = replace(decoding, max_new_tokens=max(1, room))
        return Request(list(ids), decoding, self.ends, self.encoder.tokenizer, seed)

    def answer(self, turns: Sequence[Turn], decoding: Decoding = USUAL, seed: int | str = 0) -> str:
        """The whole answer to the last user turn."""
        return "".join(self.stream(turns, decoding, seed)).strip()

    def stream(
        self, turns: Sequence[Turn], decoding: Decoding = USUAL, seed: int | str = 0
    ) -> Generator[str, None, None]:
        """The answer piece by piece; PromptError as `request` says. Closing the iterator ends the generation."""
        yield from self.answered(self.request(turns, decoding, seed))

    def continued(self, ids: Sequence[int], decoding: Decoding) -> str:
        """What the model writes after these ids."""
        return "".join(self.answered(self.after(ids, decoding)))

    def answered(self, request: Request) -> Generator[str, None, None]:
        """The answer piece by piece; of a beam search, in one."""
        from medframe.engine.beams import searched
        from medframe.engine.engine import Engine

        if request.decoding.num_beams > 1:
            searched(self.model, [request])
            yield request.said
            return
        engine, told = Engine(self.model), 0
        engine.add(request)
        while not request.finish:
            engine.step()
            if len(request.said) > told:
                yield request.said[told:]
                told = len(request.said)
