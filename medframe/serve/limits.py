"""What the server allows, so that overload is refused and never piles up."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Each request is answered, or refused at once with the reason."""

    concurrent: int = 16
    """Answers of one model that are written side by side."""
    tokens: int = 16384
    """Tokens of one model's questions and answers that are held at a time."""
    waiting: int = 64
    """Requests that may wait for a place at one model; one more is refused (429)."""
    timeout: float = 300
    """Seconds from arrival to the end of the answer."""
    arrival: float = 30
    """Seconds in which a request must be here, and its body."""
    body: int = 1 << 20
    """Bytes of a request."""
    new_tokens: int = 4096
    """Longest answer that may be asked for."""
    choices: int = 8
    """Answers to one question (`n`)."""
