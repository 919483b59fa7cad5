"""How a training is asked to stop by Ctrl-C or SIGTERM, on all its processes at the same step."""

from __future__ import annotations

import signal
from typing import Any

from medframe import Terminated

_SIGNALS: dict[int, type[BaseException]] = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}


class Stop:
    """Ctrl-C and SIGTERM: the first ends the training after a checkpoint at the next step; the second at once."""

    def __init__(self) -> None:
        self.agreed: int | None = None
        """The signal by which all processes stop, once they have agreed."""
        self._asked: set[int] = set()

    def asked(self) -> list[int]:
        """Whether this process was asked to stop by each of the signals, 0 or 1."""
        return [int(number in self._asked) for number in _SIGNALS]

    def agree(self, *asked: float) -> None:
        """Told how many processes were asked to stop by each of the signals."""
        self.agreed = next((number for number, count in zip(_SIGNALS, asked, strict=True) if count), None)

    def __enter__(self) -> None:
        self._before = {number: signal.signal(number, self._ask) for number in _SIGNALS}

    def __exit__(self, kind: Any, *rest: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.agreed is not None and kind is None:
            raise _SIGNALS[self.agreed]

    def _ask(self, number: int, _: Any) -> None:
        if number in self._asked:
            raise _SIGNALS[number]
        self._asked.add(number)


def deaf_to_signals(worker: int) -> None:
    """Have a process that only prepares data leave the signals to the one that it works for."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
