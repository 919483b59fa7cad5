"""Turns off what the libraries print of themselves: medframe says what a user needs to know."""

from __future__ import annotations

import logging
import warnings

_NAMES = r"(transformers|peft|torch|accelerate|deepspeed|bitsandbytes)\b"


def libraries() -> None:
    """No progress bars, no advice and no notices of future changes from transformers, peft, torch and others."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # accelerate imports DeepSpeed wherever it is installed, and DeepSpeed sets its logger's level when it is imported.
    logging.getLogger("DeepSpeed").addFilter(_errors)
    for category in (FutureWarning, UserWarning):
        warnings.filterwarnings("ignore", category=category, module=_NAMES)


def _errors(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
