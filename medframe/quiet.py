"""Turns off what the libraries print of themselves: medframe says what a user needs to know."""

from __future__ import annotations

import os
import warnings


def libraries() -> None:
    """No progress bars, no advice and no notices of future changes from transformers, peft, torch and DeepSpeed."""
    import torch

    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed, which accelerate imports, would look and warn
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|torch|accelerate)\b")
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(transformers|peft|torch|accelerate)\b")
