"""What DeepSpeed needs around a training, and must not leave behind: it keeps much of its state in the process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState  # type: ignore[import-untyped]
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from medframe_trainers import zero

if TYPE_CHECKING:
    from medframe_trainers.settings import Settings


@contextmanager
def session(settings: Settings, **counts: Any) -> Iterator[dict[str, Any] | None]:
    """Within it DeepSpeed can train; its complete configuration, None where the recipe names none.

    `counts` are those of `zero.config`. A lone process gets a process group of its own for as long.
    """
    if settings.deepspeed is None:
        yield None
        return
    zero.prepare()
    lone = not dist.is_initialized()
    before = set(os.environ)
    if lone:
        os.environ["LOCAL_RANK"] = "0"  # the engine asks for it
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(
            backend,
            store=dist.HashStore(),  # type: ignore[attr-defined]
            rank=0,
            world_size=1,
        )
    import deepspeed

    try:
        # The group is there: this tells DeepSpeed, which would count one process while the weights are loaded.
        deepspeed.init_distributed(dist_backend="nccl" if torch.cuda.is_available() else "gloo", verbose=False)
        yield zero.config(settings, **counts)
    finally:
        unset_hf_deepspeed_config()
        # Left as it is, the next training in this process would be DeepSpeed's, whatever its recipe says.
        AcceleratorState._reset_state(True)
        for name in set(os.environ) - before:
            del os.environ[name]
        if lone:
            # DeepSpeed's own: it forgets the groups that it has made of this one.
            deepspeed.comm.destroy_process_group()
            deepspeed.comm.comm.cdb = None
