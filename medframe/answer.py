"""A model's answer to a conversation, as text, while it is being written."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from threading import Thread
from typing import Any

from medframe.dataset import Turn
from medframe.encode import Encoder
from medframe.errors import PromptError
from medframe.tokens import resolve


class Answerer:
    """A model and the prompt format that it was trained with."""

    def __init__(self, model: Any, encoder: Encoder) -> None:
        self.model = model.eval()
        self.encoder = encoder
        tokenizer = encoder.tokenizer
        self.stop = sorted({i for token in ("eos", *encoder.prompt.stop) for i in resolve(token, tokenizer)})

    def answer(self, turns: Sequence[Turn], max_new_tokens: int = 256) -> str:
        """The whole answer to the last user turn, greedily decoded."""
        return "".join(self.stream(turns, max_new_tokens)).strip()

    def stream(self, turns: Sequence[Turn], max_new_tokens: int = 256) -> Generator[str, None, None]:
        """The answer piece by piece, greedily decoded; PromptError when the question does not fit the model's context.

        Closing the iterator early ends the generation.
        """
        config = self.model.config.get_text_config()
        # Where positions have no end (ALiBi), the length that the model was trained with keeps the memory from filling.
        context = getattr(config, "max_position_embeddings", None) or getattr(config, "model_max_length", None)
        if context and context <= max_new_tokens:
            raise PromptError(f"{max_new_tokens} new tokens leave no room in the model's context of {context}")
        ids = self.encoder.question(turns, context - max_new_tokens if context else None)
        yield from self.continued(ids, max_new_tokens)

    def continued(self, ids: Sequence[int], max_new_tokens: int) -> Generator[str, None, None]:
        """What the model writes after these ids, piece by piece."""
        import torch
        from transformers import (
            GenerationConfig,
            StoppingCriteria,
            StoppingCriteriaList,
            TextIteratorStreamer,
        )

        tokenizer = self.encoder.tokenizer
        closed = False

        class Closed(StoppingCriteria):
            def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
                return torch.full((input_ids.shape[0],), closed, device=input_ids.device)

        inputs = torch.tensor([list(ids)], device=self.model.device)
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        failure: list[BaseException] = []

        def generate() -> None:
            try:
                self.model.generate(
                    inputs,
                    attention_mask=torch.ones_like(inputs),
                    generation_config=GenerationConfig(
                        do_sample=False,
                        max_new_tokens=max_new_tokens,
                        eos_token_id=self.stop,
                        pad_token_id=tokenizer.pad_token_id,
                    ),
                    streamer=streamer,
                    stopping_criteria=StoppingCriteriaList([Closed()]),
                )
            except BaseException as error:
                failure.append(error)
                streamer.end()

        worker = Thread(target=generate, daemon=True)
        worker.start()
        try:
            yield from (piece for piece in streamer if piece)
        finally:
            closed = True
            worker.join()
        if failure:
            raise failure[0]
