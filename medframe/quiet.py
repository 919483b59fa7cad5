"""Turns off what the libraries print of themselves: medframe says what a user needs to know."""

from __future__ import annotations

import warnings


def libraries() -> None:
    """No progress bars, no advice and no notices of future changes from transformers, peft and torch."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|torch|accelerate)\b")
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(transformers|peft|torch|accelerate)\b")
