"""What a client is told: OpenAI's answers, chunks and errors."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from medframe.engine.request import Chance, Request


@dataclass(frozen=True)
class Answer:
    """One answer's envelope: chat or completion."""

    kind: Literal["chat", "text"]
    model: str
    tokenizer: Any
    token_ids: bool = False
    """Whether the token ids of the answer are told."""
    each: int = 1
    """Answers to each question."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:24])
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, requests: Sequence[Request], closing: str = "") -> dict[str, Any]:
        """The answer at once."""
        choices = []
        for index, request in enumerate(requests):
            text = request.said.strip() + closing if self.kind == "chat" else request.said + closing
            choice: dict[str, Any] = {"index": index, "finish_reason": request.finish}
            choice |= {"message": {"role": "assistant", "content": text}} if self.kind == "chat" else {"text": text}
            choice |= self._ids(request, 0)
            choices.append(choice | {"logprobs": self._logprobs(request, 0)})
        name = "chat.completion" if self.kind == "chat" else "text_completion"
        return {**self._head(name), "choices": choices, "usage": self.usage(requests)}

    def begun(self, index: int) -> dict[str, Any]:
        """The chunk before an answer."""
        return self._chunk(index, {"role": "assistant", "content": ""})

    def piece(self, index: int, text: str, request: Request, start: int, end: int) -> dict[str, Any]:
        """A chunk with the next piece of an answer, whose tokens lie between `start` and `end`."""
        more = self._ids(request, start, end)
        return self._chunk(index, {"content": text}, logprobs=self._logprobs(request, start, end), **more)

    def ended(self, index: int, request: Request, told: int) -> dict[str, Any]:
        """The last chunk of an answer, with the tokens that were not told yet: those of a stop text."""
        logprobs = self._logprobs(request, told) if told < len(request.tokens) else None
        return self._chunk(index, {}, request.finish, logprobs, **self._ids(request, told))

    def used(self, requests: Sequence[Request]) -> dict[str, Any]:
        """The chunk that tells the tokens, after all answers."""
        name = "chat.completion.chunk" if self.kind == "chat" else "text_completion"
        return {**self._head(name), "choices": [], "usage": self.usage(requests)}

    def usage(self, requests: Sequence[Request]) -> dict[str, int]:
        """Tokens of the questions, each once however many answers it has, and of all answers."""
        asked = sum(len(request.ids) for request in requests[:: self.each])
        answered = sum(len(request.tokens) for request in requests)
        return {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered}

    def _chunk(
        self, index: int, delta: Mapping[str, str], finish: str | None = None, logprobs: Any = None, **more: Any
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "finish_reason": finish, "logprobs": logprobs, **more}
        if self.kind == "chat":
            return {**self._head("chat.completion.chunk"), "choices": [choice | {"delta": dict(delta)}]}
        return {**self._head("text_completion"), "choices": [choice | {"text": delta.get("content", "")}]}

    def _head(self, name: str) -> dict[str, Any]:
        prefix = "chatcmpl" if self.kind == "chat" else "cmpl"
        return {"id": f"{prefix}-{self.id}", "object": name, "created": self.created, "model": self.model}

    def _ids(self, request: Request, start: int, end: int | None = None) -> dict[str, Any]:
        return {"token_ids": request.tokens[start:end]} if self.token_ids else {}

    def _logprobs(self, request: Request, start: int, end: int | None = None) -> dict[str, Any] | None:
        """Those of the tokens from `start` on, as far as `end`."""
        if request.logprobs is None:
            return None
        # An end token is no part of the answer.
        chances = request.chances[start : len(request.tokens) if end is None else end]
        if self.kind == "chat":
            return {"content": [self._chance(chance) for chance in chances], "refusal": None}
        return {
            "tokens": [self._text(chance.token) for chance in chances],
            "token_logprobs": [_told(chance.logprob) for chance in chances],
            "top_logprobs": [{self._text(t): _told(p) for t, p in chance.likeliest} for chance in chances],
            "text_offset": [],
        }

    def _chance(self, chance: Chance) -> dict[str, Any]:
        return {
            **self._token(chance.token, chance.logprob),
            "top_logprobs": [self._token(token, logprob) for token, logprob in chance.likeliest],
        }

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._text(token)
        return {"token": text, "logprob": _told(logprob), "bytes": list(text.encode())}

    def _text(self, token: int) -> str:
        return str(self.tokenizer.decode([token]))


def _told(logprob: float) -> float:
    return max(logprob, -9999.0)  # JSON has no infinity; this is OpenAI's word for it


def problem(message: str, status: int, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error object as OpenAI's clients read it."""
    kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
