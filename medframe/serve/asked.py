"""What a client asks for: OpenAI's request bodies, and what of them is refused."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from medframe.dataset import Role, Turn
from medframe.decoding import Decoding

_ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class Refused(Exception):
    """The request cannot be answered as it is: a status, and what is wrong with which parameter."""

    def __init__(self, message: str, param: str | None = None, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.message, self.param, self.status, self.code = message, param, status, code


class StreamOptions(BaseModel):
    """What a stream tells beside the answer."""

    include_usage: bool = False


class _Sampling(BaseModel):
    """What both kinds of request have. What changes the answer and is not here is refused, the rest not read."""

    model_config = ConfigDict(extra="allow")

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=10)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    repetition_penalty: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    n: int = Field(1, ge=1)
    stream: bool = False
    stream_options: StreamOptions | None = None

    @field_validator("n", "stream", mode="before")
    @classmethod
    def _null_is_the_default(cls, value: Any, info: Any) -> Any:
        return cls.model_fields[info.field_name].default if value is None else value

    def check(self, choices: int) -> None:
        """Refused for what would have to change the answer and cannot."""
        for name, value in (self.model_extra or {}).items():
            if name in _CHANGING and value not in (None, _CHANGING[name]):
                raise Refused(f"{name} is not supported", name, code="unsupported_parameter")
        if self.n > choices:
            raise Refused(f"n may be at most {choices}", "n")
        if isinstance(self.stop, list) and len(self.stop) > 16:
            raise Refused("stop may hold at most 16 texts", "stop")
        if self.stop and max(map(len, [self.stop] if isinstance(self.stop, str) else self.stop)) > 1000:
            raise Refused("a stop text may have at most 1000 characters", "stop")

    def decoding(self, usual: Decoding, longest: int) -> Decoding:
        """The model's usual one with what is asked for in its place; Refused for what cannot be."""
        asked = {name: getattr(self, name) for name in ("temperature", "top_p", "repetition_penalty")}
        values = {name: value for name, value in asked.items() if value is not None}
        if self.top_k is not None:
            values["top_k"] = self.top_k if self.top_k > 0 else None
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or list(usual.stop)
        tokens = self._longest()
        if tokens is not None and tokens > longest:
            raise Refused(f"at most {longest} new tokens may be asked for here, not {tokens}", "max_tokens")
        told = {name: getattr(usual, name) for name in ("temperature", "top_k", "top_p", "repetition_penalty")}
        try:
            return Decoding(
                **{**told, **values}, max_new_tokens=tokens or min(usual.max_new_tokens, longest), stop=tuple(stop)
            )
        except ValueError as error:
            raise Refused(str(error)) from None

    def _longest(self) -> int | None:
        return self.max_tokens


_CHANGING: dict[str, Any] = {
    "tools": [],
    "functions": [],
    **dict.fromkeys(("tool_choice", "function_call"), "none"),
    **dict.fromkeys(("presence_penalty", "frequency_penalty"), 0),
    "logit_bias": {},
    **dict.fromkeys(("audio", "prediction", "suffix", "web_search_options", "reasoning_effort")),
    "response_format": {"type": "text"},
    "modalities": ["text"],
    "echo": False,
    "best_of": 1,
}
"""Parameters of OpenAI's that would change the answer, and the value of each that does not."""


class Part(BaseModel):
    """A part of a message."""

    type: str
    text: str | None = None


class Message(BaseModel):
    """One turn, as OpenAI has it."""

    role: str
    content: str | list[Part] | None = None

    def turn(self) -> Turn:
        """Refused for a role or a content that is no text."""
        if self.role not in _ROLES:
            raise Refused(f"role {self.role!r} is not supported; {', '.join(_ROLES)} are", "messages")
        if self.content is None:
            raise Refused("a message without content is not supported", "messages")
        if isinstance(self.content, list):
            if any(part.type != "text" or part.text is None for part in self.content):
                raise Refused("only text is understood, no pictures or sounds", "messages")
            return Turn(_ROLES[self.role], "".join(part.text or "" for part in self.content))
        return Turn(_ROLES[self.role], self.content)


class Chat(_Sampling):
    """The body of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=1000)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)

    def turns(self, ignore_system: bool) -> list[Turn]:
        """The conversation, which ends with a question; Refused where it does not."""
        turns = [message.turn() for message in self.messages]
        if ignore_system:
            turns = [turn for turn in turns if turn.role != "system"]
        if not turns or turns[-1].role != "user":
            raise Refused("the last message must be the user's", "messages")
        if not turns[-1].text.strip():
            raise Refused("the last message is empty", "messages")
        return turns

    def likeliest(self) -> int | None:
        """How many log-probabilities to tell beside each token's own; None: none at all."""
        if self.top_logprobs and not self.logprobs:
            raise Refused("top_logprobs needs logprobs: true", "top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None

    def _longest(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class Completion(_Sampling):
    """The body of /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    return_token_ids: bool = False
    """Tell the answer's token ids too, as vLLM does."""
    stop_token_ids: list[int] = Field(default_factory=list, max_length=100)
    """More tokens that end the answer, as vLLM has it."""
    logprobs: int | None = Field(None, ge=0, le=20)

    def prompts(self) -> list[str | list[int]]:
        """Each as a text, or as ids."""
        alone = isinstance(self.prompt, str) or any(isinstance(each, int) for each in self.prompt)
        several: list[Any] = [self.prompt] if alone else list(self.prompt)
        if not several or not all(several):
            raise Refused("prompt is empty", "prompt")
        return several


class Legacy(BaseModel):
    """The body of ChatMed's own service."""

    query: str
    max_new_tokens: int | None = Field(None, ge=1)

    def question(self) -> str:
        """What is asked, out of the layout that ChatMed's client puts around it; Refused where that is nothing."""
        text = self.query.strip().removeprefix("<s>").strip()
        text = text.removeprefix("问：").strip().removesuffix("答：").strip()
        if not text:
            raise Refused("query is empty", "query")
        return text
