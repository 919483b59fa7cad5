"""Counters for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """What /metrics tells: requests by outcome, tokens, times, and what is going on."""

    def __init__(self, running: Callable[[], int], waiting: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "medframe_requests", "Requests by model and status", ["model", "status"], registry=self._registry
        )
        self.asked = Counter("medframe_prompt_tokens", "Tokens of questions", ["model"], registry=self._registry)
        self.answered = Counter("medframe_answer_tokens", "Tokens of answers", ["model"], registry=self._registry)
        self.first = Histogram(
            "medframe_first_piece_seconds", "From arrival to the first piece", ["model"], registry=self._registry
        )
        self.whole = Histogram(
            "medframe_answer_seconds", "From arrival to the end of the answer", ["model"], registry=self._registry
        )
        Gauge("medframe_running", "Requests being answered", registry=self._registry).set_function(running)
        Gauge("medframe_waiting", "Requests without a place yet", registry=self._registry).set_function(waiting)

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self._registry)
