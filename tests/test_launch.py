"""Runs of several processes through the command line, by a trainer that a third party wrote; really killed."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from conftest import Medframe

PLUGIN = '''\
"""A trainer that averages gradients over processes, in a plain loop; data that no two processes need to agree on."""

import os
import signal
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import medframe


@medframe.hookimpl
def trainers():
    return {"averaging": Averaging}


@medframe.hookimpl
def datasets():
    return {"unkept": Unkept}


@dataclass(kw_only=True)
class Unkept(medframe.DatasetSource):
    """Consultations that are encoded anew each time, by each process."""

    path: str = "-"
    pause: float = 0
    by_rank: bool = False

    def fingerprint(self):
        return None

    def rows(self):
        who = os.environ.get("RANK", "0") if self.by_rank else "all"
        for number in range(12):
            yield medframe.Row([f"{who}: {number}", f"{number}" * 5], medframe.Where("made", number + 1))
            if self.pause:
                Path("encoding").touch()
                time.sleep(self.pause)

    def sample(self, row):
        question, answer = row.value
        return medframe.Sample((medframe.Turn("user", question), medframe.Turn("assistant", answer)), row.where)


@dataclass(kw_only=True)
class Averaging(medframe.Trainer):
    """Every weight; a step takes a micro-batch of each process."""

    max_steps: int = 4

    def fit(self, job):
        import torch
        import torch.distributed as dist

        torch.manual_seed(job.seed)
        model = job.load_model().train()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        step = 0
        if job.resume:
            state = torch.load(job.resume / "state.pt", weights_only=True)
            model.load_state_dict(state["model"])
            step = state["step"]
        epochs = (job.train.epoch(number) for number in count())
        batches = (epoch[index] for epoch in epochs for index in range(len(epoch)))
        mine = (batch for number, batch in enumerate(batches) if number % job.world == job.rank)
        while step < self.max_steps:
            batch = next(mine)
            labels = batch.pop("labels")
            logits = model(**batch, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
            loss.backward()
            if step == 2:
                self._trouble(job)
            if job.world > 1:
                for parameter in model.parameters():
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= job.world
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            job.progress(step)
            job.log(step, self.max_steps, {"loss": loss.item()})
            if step % 2 == 0:
                with job.saving(f"checkpoints/checkpoint-{step}") as folder:
                    (folder / f"rank-{job.rank}").write_text(str(step))
                    if job.rank == 0:
                        torch.save({"model": model.state_dict(), "step": step}, folder / "state.pt")
                    if step > 2 and trouble(job) == "no room":
                        (folder / "more").symlink_to("/dev/full")
                        (folder / "more").write_text("more")
        if job.world > 1:
            whole = sum(parameter.detach().sum() for parameter in model.parameters())
            every = [torch.zeros(()) for _ in range(job.world)]
            dist.all_gather(every, whole)
            assert len(set(map(float, every))) == 1, "the processes have come to different weights"
        with job.saving("model") as folder:
            if job.rank == 0:
                model.save_pretrained(folder)
                job.tokenizer.save_pretrained(folder)
        job.finish(model)

    def _trouble(self, job):
        if trouble(job) == "error":
            raise medframe.RunError("there is a fly in the soup")
        if trouble(job) == "bug":
            raise LookupError("no such fly")
        if trouble(job) == "no room for the log":
            (job.out / "metrics.jsonl").unlink()
            (job.out / "metrics.jsonl").symlink_to("/dev/full")
        if trouble(job) in ("sleep", "stop"):
            (job.out.parent / "pid").write_text(str(os.getpid()))
        if trouble(job) == "sleep":
            time.sleep(600)
        if trouble(job) == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)


def trouble(job):
    """What goes wrong in this process, in the third step."""
    rank, _, what = os.environ.get("TROUBLE", "").partition(" ")
    return what if rank == str(job.rank) else ""
'''
RECIPE = """\
out: run
backbone: {use: llama, weights: tiny}
data: {consult: {use: chatmed-consult, path: sample, limit: 24}}
held_out: {rows: 2}
prompt: {use: chatmed}
batching: {kind: padded, rows: 2}
compare: 0
processes: 2
trainer: {use: averaging}
"""
UNKEPT = "data={consult: {use: unkept}}"


class Launch:
    """Starts the command in a folder of its own, and finds again all processes that come of it."""

    def __init__(self, folder: Path, site: Path) -> None:
        self.folder = folder
        self.run = folder / "run"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        (folder / "recipe.yaml").write_text(RECIPE, "utf-8")
        path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.environment = {**os.environ, "PYTHONPATH": path, "TMPDIR": str(self.temporary), "LAUNCH": str(folder)}

    def start(self, *arguments: str, by: tuple[str, ...] = (), **variables: str) -> subprocess.Popen[str]:
        """`medframe run recipe.yaml ARGUMENTS`, by a launcher perhaps."""
        return subprocess.Popen(
            [sys.executable, *by, "-m", "medframe", "run", "recipe.yaml", *arguments],
            cwd=self.folder,
            env={**self.environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def ended(self, *arguments: str, by: tuple[str, ...] = (), **variables: str) -> tuple[int, str, str]:
        """The same, once it has ended: exit code, standard output, standard error."""
        return end(self.start(*arguments, by=by, **variables))

    def processes(self, having: str = "") -> list[int]:
        """Those alive with this launch's environment and the word in their command line."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                marked = f"LAUNCH={self.folder}\0".encode() in (folder / "environ").read_bytes()
                if marked and having.encode() in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                continue  # ended meanwhile
        return found

    def nothing_is_left(self) -> None:
        """Within a moment, no process and no temporary file is there."""
        deadline = time.monotonic() + 10
        while left := [*self.processes(), *self.temporary.glob("[!t]*"), *self.temporary.glob("tmp*")]:
            assert time.monotonic() < deadline, left  # torchinductor_USER is a cache
            time.sleep(0.1)

    def wait_for(self, path: str, process: subprocess.Popen[str]) -> Path:
        deadline = time.monotonic() + 120
        while not (self.folder / path).exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return self.folder / path

    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.run / "checkpoints").iterdir())


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The third party's plugin, as if it were installed."""
    site = tmp_path_factory.mktemp("site")
    info = site / "averaging-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: averaging\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[medframe]\naveraging = averaging\n")
    (site / "averaging.py").write_text(PLUGIN, "utf-8")
    return site


@pytest.fixture
def launch(tmp_path: Path, site: Path) -> Iterator[Launch]:
    launch = Launch(tmp_path, site)
    yield launch
    for pid in launch.processes():
        os.kill(pid, signal.SIGKILL)


def finished(launch: Launch, processes: int = 2) -> None:
    manifest = json.loads((launch.run / "manifest.json").read_text("utf-8"))
    assert manifest["state"] == "finished"
    assert manifest["processes"] == processes
    steps = [json.loads(line)["step"] for line in (launch.run / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert steps == [1, 2, 3, 4]


def test_two_processes_train_one_model(launch: Launch, medframe: Medframe, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = launch.ended(UNKEPT, "compare=1")
    assert code == 0, err
    assert err == ""
    assert out.count("Training on ") == out.count("Run directory: ") == 1
    finished(launch)
    assert launch.checkpoints() == ["checkpoint-2", "checkpoint-4"]
    assert sorted(file.name for file in (launch.run / "checkpoints" / "checkpoint-4").glob("rank-*")) == [
        "rank-0",
        "rank-1",
    ]
    launch.nothing_is_left()
    monkeypatch.chdir(launch.folder)
    monkeypatch.setattr("sys.stdin", io.StringIO("头痛\n"))
    said = medframe("chat", "run", "--max-new-tokens", 8)
    assert said.code == 0, said.err
    assert launch.ended("--resume")[0] == 2  # it has finished


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def test_deepspeeds_launcher_is_joined_on_two_machines(launch: Launch) -> None:
    pytest.importorskip("deepspeed")
    (launch.folder / "hosts").write_text("one slots=1\nother slots=1\n")
    both = []
    for node, port in ((node, port) for port in [free_port()] for node in (0, 1)):
        where = ["--master_addr=127.0.0.1", f"--master_port={port}", "--no_ssh", f"--node_rank={node}"]
        line = ["-m", "deepspeed.launcher.runner", "--hostfile=hosts", *where, "--module"]
        arguments = [sys.executable, *line, "medframe", "run", "recipe.yaml"]
        both.append(
            subprocess.Popen(
                arguments,
                cwd=launch.folder,
                env={**launch.environment, "DS_ACCELERATOR": "cpu"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for code, _, err in map(end, both):
        assert code == 0, err
    finished(launch)


def test_a_step_of_slurm_is_joined(launch: Launch) -> None:
    slurm = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0"}
    (launch.folder / "scontrol").write_text('#!/bin/sh\n[ "$3" = "local[host-bus]" ] && echo localhost localbus\n')
    (launch.folder / "scontrol").chmod(0o755)
    slurm |= {"SLURM_STEP_NODELIST": "local[host-bus]", "PATH": f"{launch.folder}:{os.environ['PATH']}"}
    both = [launch.start(**slurm, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank)) for rank in (0, 1)]
    for code, _, err in map(end, both):
        assert code == 0, err
    finished(launch)


def test_machines_that_do_not_share_the_run_directory_are_an_error(launch: Launch) -> None:
    slurm = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": "1", "MASTER_ADDR": "127.0.0.1"}
    slurm |= {"MASTER_PORT": str(free_port())}
    where = {"0": str(launch.run), "1": str(launch.folder / "elsewhere")}
    both = [launch.start(f"out={where[n]}", **slurm, SLURM_PROCID=n, SLURM_LOCALID=n) for n in where]
    (_, _, first), (code, _, other) = map(end, both)
    assert code == 2
    assert "rank 1: Error: out: " in other
    assert "name one that all share" in other
    assert first == "rank 0: ends because another process has ended\n"


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "MASTER_ADDR and MASTER_PORT must say"),
        ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK is 2 and WORLD_SIZE 2"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "LOCAL_RANK is None"),
        ({"RANK": "1"}, "RANK is set in the environment, and WORLD_SIZE is not"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, "SLURM_STEP_NUM_TASKS is set, and SLURM_PROCID is not"),
        (
            {
                "SLURM_STEP_NUM_TASKS": "2",
                "SLURM_PROCID": "0",
                "SLURM_LOCALID": "0",
                "SLURM_JOB_ID": "1",
                "SLURM_STEP_NODELIST": "n",
                "PATH": "",
            },
            "set MASTER_ADDR",
        ),
    ],
)
def test_a_launch_that_does_not_say_enough_is_an_error(
    launch: Launch, variables: Mapping[str, str], problem: str
) -> None:
    code, _, err = launch.ended(**variables)
    assert code == 2
    assert problem in err
    assert "Traceback" not in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_waits_for_others_to_come_hears_signals(launch: Launch, number: int) -> None:
    port = free_port()
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    process = launch.start(RANK="0", LOCAL_RANK="0", WORLD_SIZE="2", **where)
    deadline = time.monotonic() + 120
    while socket.socket().connect_ex(("127.0.0.1", port)):  # until it listens, and waits
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(number)
    code, _, err = end(process)
    assert code == 128 + number
    assert "Traceback" not in err


@pytest.mark.parametrize("value", ["processes=0", "processes=two", "patience=0"])
def test_wrong_numbers_are_refused(launch: Launch, value: str) -> None:
    code, _, err = launch.ended(value)
    assert code == 2
    assert err.startswith("Error: ")
    assert value.partition("=")[0] in err
    assert "Traceback" not in err


def test_a_wrong_recipe_is_one_error(launch: Launch) -> None:
    assert launch.ended("trainer.max_step=3")[2].count("max_step") == 2  # the key, and what was meant
    code, _, err = launch.ended("backbone.weights=nowhere/at/all")
    assert code == 2
    assert err.count("\n") == err.count("Error: ") == 1


def test_an_error_of_one_process_is_said_once(launch: Launch) -> None:
    code, _, err = launch.ended(UNKEPT, TROUBLE="1 error")
    assert (code, err) == (2, "Error: there is a fly in the soup\n")
    launch.nothing_is_left()
    code, out, err = launch.ended(UNKEPT, "--resume", TROUBLE="1 bug")
    assert code == 1
    assert "Going on from checkpoint-2" in out
    assert err.startswith("rank 1: Traceback ")
    assert err.endswith("\nLookupError: no such fly\n")
    assert err.count("Traceback") == 1
    launch.nothing_is_left()


def test_processes_with_different_data_do_not_train(launch: Launch) -> None:
    code, _, err = launch.ended("data={consult: {use: unkept, by_rank: true}}")
    assert code == 2
    assert err == "Error: rank 1 has another data than rank 0: every process must read the same\n"


# Rank 0 and the supervisor are killed in test_kills.py.
def test_a_killed_process_takes_the_others_along_and_the_run_goes_on_in_a_launch_of_one(launch: Launch) -> None:
    process = launch.start(UNKEPT, TROUBLE="1 sleep")
    pid = launch.wait_for("pid", process).read_text()
    assert len(launch.processes()) == 3
    os.kill(int(pid), signal.SIGKILL)
    code, _, err = end(process)
    assert code == 1
    assert err == (
        "Error: rank 1 was killed by SIGKILL (out of memory?); the last whole checkpoint is kept: go on with --resume\n"
    )
    launch.nothing_is_left()
    code, out, err = launch.ended(UNKEPT, "--resume", RANK="0", WORLD_SIZE="1")
    assert code == 0, err
    assert "1 process, as launched." in out
    assert "Going on from checkpoint-2." in out
    finished(launch, 1)


def test_the_last_proof_does_not_outlive_a_killed_run(launch: Launch) -> None:
    process = launch.start("processes=1", "compare=2")
    while not (proof := launch.processes("medframe.witness")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    end(process)
    launch.nothing_is_left()
    assert proof


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "Interrupted."), (signal.SIGTERM, 143, "Terminated.")]
)
def test_signals_reach_every_process(launch: Launch, number: int, code: int, word: str) -> None:
    process = launch.start(UNKEPT, TROUBLE="1 sleep")
    launch.wait_for("pid", process)
    process.send_signal(number)
    ended, _, err = end(process)
    assert (ended, err.strip()) == (code, word)
    launch.nothing_is_left()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_is_terminated_while_it_encodes_leaves_nothing(launch: Launch, processes: int) -> None:
    process = launch.start("data={consult: {use: unkept, pause: 5}}", f"processes={processes}")
    launch.wait_for("encoding", process)
    process.terminate()
    code, _, err = end(process)
    assert (code, err) == (143, "Terminated.\n")
    launch.nothing_is_left()
    assert not launch.run.exists()


def test_a_second_interrupt_ends_at_once(launch: Launch) -> None:
    process = launch.start(UNKEPT, TROUBLE="1 stop")
    pid = int(launch.wait_for("pid", process).read_text())
    while "\nState:\tT" not in Path(f"/proc/{pid}/status").read_text():
        time.sleep(0.05)
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    assert end(process)[0] == 130
    launch.nothing_is_left()


@pytest.mark.parametrize(
    ("trouble", "rank", "said"),
    [
        ("stop", 0, "rank 0 has not answered for 0.1 minutes; the others wait after step 2"),
        ("stop", 1, "rank 1 has not answered for 0.1 minutes; the others wait after step 2"),
        ("sleep", 1, "rank 1 got no further than step 2 for 0.1 minutes; the others wait"),
    ],
)
def test_a_process_that_keeps_the_others_waiting_is_named(launch: Launch, trouble: str, rank: int, said: str) -> None:
    code, _, err = launch.ended("patience=0.1", UNKEPT, TROUBLE=f"{rank} {trouble}")
    assert code == 1
    assert err == f"Error: {said} (patience); the last whole checkpoint is kept: go on with --resume\n"
    launch.nothing_is_left()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_full_disk_ends_the_run_with_one_line_and_the_last_checkpoint(launch: Launch, rank: int) -> None:
    code, _, err = launch.ended(TROUBLE=f"{rank} no room")
    assert code == 1
    assert err == (
        "Error: run/checkpoints/checkpoint-4 could not be written: No space left on device; "
        "what was there before is kept\n"
    )
    assert launch.checkpoints() == ["checkpoint-2"]


def test_nothing_outlives_a_killed_torchrun(launch: Launch) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    process = launch.start("patience=0.1", UNKEPT, by=torchrun, TROUBLE="1 sleep")
    launch.wait_for("pid", process)
    process.kill()
    end(process)
    while launch.processes():
        time.sleep(0.1)


def test_a_log_that_cannot_be_written_is_one_line(launch: Launch) -> None:
    code, _, err = launch.ended("processes=1", TROUBLE="0 no room for the log")
    assert code == 1
    assert err == (
        "Error: run/metrics.jsonl could not be written: No space left on device; "
        "the last whole checkpoint is kept: go on with --resume\n"
    )
