"""Which of the processes that train together this one is, and how they keep in step outside of the training itself."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medframe import worker
from medframe.errors import MedframeError, RunError

if TYPE_CHECKING:
    from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

    from medframe.watch import Watch

LAUNCH = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""The environment variables that tell a process of its launch."""


class Abandoned(MedframeError):
    """Another process has failed, and says why; this one only follows."""

    exit_code = 1


@dataclass(frozen=True)
class Place:
    """One of the processes of a launch."""

    rank: int
    size: int
    local_rank: int
    """Its number on this machine."""


class World:
    """The processes that train together; by itself, the one process of a plain run."""

    def __init__(self, rank: int = 0, size: int = 1, store: Store | None = None) -> None:
        self.rank = rank
        self.size = size
        self.left = False
        """Whether a process group has been here: what it leaves behind may abort an ordinary exit."""
        self.follows = False
        """Whether another process failed before this one, and says what really happened."""
        self._abandoned = False
        self.watch: Watch | None = None
        self._store = store
        self._meetings = 0

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, JSON, by rank, once all have come here; Abandoned where one has failed."""
        store = self._store
        if store is None:
            return [value]
        self._meetings += 1
        keys = [f"{self._meetings}/{rank}" for rank in range(self.size)]
        try:
            store.set(keys[self.rank], json.dumps({"value": value}))
            found = []
            for rank, key in enumerate(keys):
                _until(partial(store.check, [key]))
                said = json.loads(store.get(key))
                if "value" not in said:
                    raise Abandoned(f"rank {rank} has failed, and the others with it")
                found.append(said["value"])
        except RuntimeError as error:  # the store is gone, and the process that held it
            raise Abandoned("the first process has ended, and the others with it") from error
        return found

    def together(self) -> None:
        """Go on once all have come here."""
        self.gather(None)

    def share(self, value: Any) -> Any:
        """Rank 0's value, JSON, in every process."""
        return self.gather(value if self.rank == 0 else None)[0]

    @contextmanager
    def first_then_others(self) -> Iterator[None]:
        """Rank 0 goes through the block before the others do."""
        if self.rank:
            self.together()
        yield
        if not self.rank:
            self.together()

    def abandon(self) -> None:
        """Tell those that wait for this process, now or later, that it has failed."""
        if self._store is None or self._abandoned:
            return
        self._abandoned = True
        try:
            self.follows = self._store.add("failures", 1) > 1
            self._store.set(f"{self._meetings + 1}/{self.rank}", "{}")
        except RuntimeError:
            self.follows = True  # rank 0, which held the store, has ended

    def leave(self) -> None:
        """End the process group, once all have come here; each goes on alone."""
        self.together()
        if self.watch:
            self.watch.stop()
        if "torch.distributed" in sys.modules:
            import torch.distributed as dist

            if dist.is_available() and dist.is_initialized():
                dist.destroy_process_group()
                self.left = True

    def part(self) -> None:
        """Meet for the last time; rank 0, which may hold the store, is the last to go."""
        self.together()
        if self._store is None:
            return
        with suppress(RuntimeError):
            if self.rank:
                self._store.set(f"parted/{self.rank}", "")
            else:
                parted = [f"parted/{rank}" for rank in range(1, self.size)]
                _until(partial(self._store.check, parted), seconds=30)


_current = World()


def current() -> World:
    """The world of this process, as `join` left it."""
    return _current


def is_launched() -> bool:
    """Whether this process was started as one of several."""
    return worker.is_supervised() or ("RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1")


def join(patience: float, out: Path) -> World:
    """The world that the environment tells of, its process group of torch.distributed ready; a lone process: no group.

    CPU tensors go by gloo, those on GPUs by nccl, one GPU a process. When a process keeps the others waiting for
    `patience` minutes, all end; `out`, the run directory, is looked into to say what is kept.
    """
    global _current
    place = found()
    if place is None or place.size == 1 or _current.size > 1:
        return _current
    import torch
    import torch.distributed as dist
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]

    from medframe.watch import Watch

    if gpus := torch.cuda.is_available() and torch.cuda.device_count():
        if place.local_rank >= gpus:
            raise RunError(
                f"processes: rank {place.rank} finds {gpus} GPUs, and is number {place.local_rank + 1} on its machine; "
                f'start one process for each (processes={gpus}), or hide them with CUDA_VISIBLE_DEVICES="" to train on '
                "the CPU"
            )
        torch.cuda.set_device(place.local_rank)
    elif not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed would look for a GPU, and warn
    # Each try of a launcher that starts failed processes again is a world of its own.
    name = f"medframe/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    minutes = max(patience, 1)
    store = PrefixStore(name, _store(place, minutes))
    watched = PrefixStore(name, _connect(minutes))
    # What comes next waits for all others, and hears no signal meanwhile.
    store.add("arrived", 1)
    if not _until(lambda: store.add("arrived", 0) >= place.size, minutes * 60):
        raise RunError(
            f"{store.add('arrived', 0)} of {place.size} processes have come within {minutes:g} minutes (patience); "
            "look at the others"
        )
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if gpus else "gloo",
        store=PrefixStore("group", store),
        rank=place.rank,
        world_size=place.size,
        timeout=timedelta(minutes=patience + 1),  # later than the watch, which can say who is behind
    )
    _current = World(place.rank, place.size, PrefixStore("meetings", store))
    _current.watch = Watch(place.rank, place.size, PrefixStore("watch", watched), patience * 60, out)
    return _current


def found() -> Place | None:
    """This process's place in a launch by torchrun, deepspeed, SLURM's srun or `medframe.launch`; None outside of one.

    RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set afterwards. RunError for a launch that does not
    give what is needed.
    """
    env = os.environ
    if "RANK" not in env and env.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        try:
            _from_slurm()
        except KeyError as error:
            raise RunError(f"SLURM_STEP_NUM_TASKS is set, and {error.args[0]} is not: srun sets both") from None
    if ("RANK" in env) != ("WORLD_SIZE" in env):
        given, missing = ("RANK", "WORLD_SIZE") if "RANK" in env else ("WORLD_SIZE", "RANK")
        raise RunError(f"{given} is set in the environment, and {missing} is not: a launcher sets both; unset {given}")
    if "RANK" not in env:
        return None
    if env["WORLD_SIZE"] == "1":
        return Place(0, 1, 0)
    numbers = []
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        if not env.get(name, "").isdecimal():
            raise RunError(f"{name} is {env.get(name)!r}, and other variables tell of a launch of many processes")
        numbers.append(int(env[name]))
    rank, size, local_rank = numbers
    if not rank < size:
        raise RunError(f"RANK is {rank} and WORLD_SIZE {size}: ranks count from 0")
    if not (env.get("MASTER_ADDR") and env.get("MASTER_PORT", "").isdecimal() and int(env["MASTER_PORT"]) < 65536):
        raise RunError("MASTER_ADDR and MASTER_PORT must say where the first process listens, as torchrun sets them")
    return Place(rank, size, local_rank)


def _from_slurm() -> None:
    """Set RANK and the others from what srun says of this task."""
    env = os.environ
    env["RANK"], env["WORLD_SIZE"] = env["SLURM_PROCID"], env["SLURM_STEP_NUM_TASKS"]
    alone = len(env.get("CUDA_VISIBLE_DEVICES", "").split(",")) == 1 and env.get("SLURM_GPUS_PER_TASK")
    env.setdefault(
        "LOCAL_RANK", "0" if alone else env["SLURM_LOCALID"]
    )  # a task that sees only its own GPU counts from there
    # Apart for each step: several may run on one machine at a time.
    number = 8 * int(env["SLURM_JOB_ID"]) + int(env.get("SLURM_STEP_ID") or 0)
    env.setdefault("MASTER_PORT", str(20000 + number % 10000))
    if "MASTER_ADDR" not in env:
        nodes = env.get("SLURM_STEP_NODELIST") or env["SLURM_JOB_NODELIST"]
        try:
            listed = subprocess.run(
                ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True
            )
            env["MASTER_ADDR"] = listed.stdout.split()[0]
        except (OSError, subprocess.CalledProcessError, IndexError):
            raise RunError(f"the first of {nodes} cannot be told: scontrol failed; set MASTER_ADDR to it") from None


def _store(place: Place, minutes: float) -> TCPStore:
    """The store that all processes share: rank 0 holds it, unless torchrun does."""
    if place.rank or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return _connect(minutes)
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        return TCPStore(address, port, is_master=True, wait_for_workers=False, master_listen_fd=worker.listener())
    except RuntimeError as error:
        raise RunError(
            f"MASTER_PORT: {port} cannot be listened on: {str(error).partition(chr(10))[0]}; choose another"
        ) from None


def _connect(minutes: float) -> TCPStore:
    """The store of the first process, once that is there."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    began, why = time.monotonic(), ""

    def listens() -> bool:
        nonlocal why
        try:
            socket.create_connection((address, port), timeout=10).close()
        except OSError as error:
            why = f": {error.strerror or error}"
            if isinstance(error, socket.gaierror) and time.monotonic() - began > 60:  # a new name takes a while
                raise RunError(f"MASTER_ADDR: the machine {address} cannot be found{why}") from None
            return False
        return True

    # Asked for here first: TCPStore hears no signal while it waits, and shows how it fared.
    if _until(listens, minutes * 60):
        with suppress(RuntimeError):
            return TCPStore(address, port, is_master=False, wait_for_workers=False)
    raise RunError(f"the first process cannot be reached at {address}:{port}{why}")


def _until(true: Callable[[], bool], seconds: float = math.inf) -> bool:
    """Wait until it is true, at most so long; signals are heard meanwhile. Whether it came true."""
    pause, deadline = 0.0005, time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)
    return True
