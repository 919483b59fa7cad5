"""The next token of each answer, from the logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from medframe.decoding import Decoding
from medframe.engine.request import Chance, Request

_NEAR = 512
"""Among so many of the likeliest nearly every `top_p` is reached; only else are all tokens sorted."""


def choose(logits: torch.Tensor, requests: Sequence[Request]) -> None:
    """Give each request its next token. logits: [requests, vocabulary], any precision."""
    logits = logits.float()
    # Of an infinite logit, or of none that is finite, no probabilities can be made either.
    sound = logits.logsumexp(1).isfinite().tolist()
    for request, row, numbers in zip(requests, logits, sound, strict=True):
        if not numbers:
            request.end("broken")
            continue
        scores = _penalised(row, request)
        token = _drawn(scores, request) if request.decoding.temperature else int(scores.argmax())
        if request.logprobs is not None:
            request.chances.append(_chance(row, token, request.logprobs))
        request.take(token)


def _penalised(row: torch.Tensor, request: Request) -> torch.Tensor:
    penalty = request.decoding.repetition_penalty
    if penalty == 1:
        return row
    seen = torch.tensor(request.ids + request.tokens, device=row.device)
    before = row[seen]
    return row.scatter(0, seen, torch.where(before < 0, before * penalty, before / penalty))


def _drawn(scores: torch.Tensor, request: Request) -> int:
    """A token by its probability, by the request's own random numbers: what lies beside it does not change it."""
    # Below the likeliest, and in double precision, so that no temperature, however low, makes them infinite.
    scores = (scores - scores.max()).double() / request.decoding.temperature
    values, tokens = _candidates(scores, request.decoding)
    sums = torch.softmax(values, 0, dtype=torch.float64).cumsum(0)
    at = torch.searchsorted(sums, request.random.random() * float(sums[-1]))
    return int(tokens[min(int(at), len(tokens) - 1)])


def _candidates(scores: torch.Tensor, decoding: Decoding) -> tuple[torch.Tensor, torch.Tensor]:
    """(score, token) of those that may be drawn; in order of likelihood, or all in order of the vocabulary.

    As transformers' warpers have it: of the `top_k` likeliest, the fewest whose probability is `top_p`.
    """
    everything = torch.arange(len(scores), device=scores.device)
    if decoding.top_k is None and decoding.top_p == 1:
        return scores, everything
    kept = min(decoding.top_k or _NEAR, len(scores))
    values, tokens = scores.topk(kept)
    if decoding.top_p == 1:
        return values, tokens
    probabilities = torch.softmax(values, 0) if decoding.top_k else (values - scores.logsumexp(0)).exp()
    if not decoding.top_k and float(probabilities.sum()) < decoding.top_p:
        values, tokens = scores.sort(descending=True)
        probabilities = torch.softmax(values, 0)
    before = probabilities.cumsum(0) - probabilities
    count = max(1, int((before < decoding.top_p).sum()))
    return values[:count], tokens[:count]


def _chance(row: torch.Tensor, token: int, likeliest: int) -> Chance:
    logprobs = row.log_softmax(0)
    values, tokens = logprobs.topk(min(likeliest, len(row)))
    return Chance(token, float(logprobs[token]), tuple(zip(tokens.tolist(), values.tolist(), strict=True)))
