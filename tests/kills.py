"""Kills any process of a run at any moment, again and again, and looks whether the run comes back from it unharmed.

    python tests/kills.py --kills 100 --seed 0 --deepspeed zero2 --use lora --processes 2

A small run with dropout is made once undisturbed. Then the same run is begun, killed, gone on with by `--resume`, and
so on until it has finished, and begun anew until there were enough kills. Each kill must leave no process, nothing in
shared memory, no temporary file and nothing half-written; each finished run must have the undisturbed one's metrics,
bit for bit, and its weights. `test_kills.py` does this with five kills.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medframe.checkpoints import damage

STEPS, KEPT = 12, 2
RECIPE = f"""\
out: run
seed: 3
backbone: {{use: llama, weights: tiny}}
data: {{consult: {{use: chatmed-consult, path: rows.jsonl}}}}
held_out: {{rows: 4}}
prompt: {{use: chatmed}}
batching: {{kind: padded, rows: 2}}
compare: 0
trainer: {{learning_rate: 1e-3, max_steps: {STEPS}, logging_steps: 1, save_steps: 1, keep: {KEPT}}}
"""
RANDOM = {"lora": ["trainer.use=lora", "trainer.dropout=0.1"], "full": ["trainer.use=full"]}
"""What of each trainer draws random numbers in every step."""
RANDOM["full"].append("trainer.neftune_noise_alpha=5")

PHASES = {"start-up": 0.2, "training": 0.25, "save": 0.4, "end": 0.15}
"""What a run is doing, and how many of the kills are aimed at it."""
PATIENCE = 30.0
"""Seconds that a killed run has, on a busy machine, to be gone."""
LEFT_WHILE_WRITING = (".saving", ".old", ".writing", ".making")


@dataclass(frozen=True)
class Kill:
    """When a process is killed, and which."""

    phase: str
    """One of PHASES: the kill waits for it. One for the start-up goes by the clock, and may come later."""
    at: float
    """When within the phase, 0 to 1; of training and saves within the steps that are left, the first ones sooner."""
    delay: float
    """Seconds after the beginning of the step or save that is chosen so."""
    victims: tuple[str, ...]
    """The first of them that is there is killed: supervisor, rank 0, ..., and the witness of the last proof."""


def drawn(number: int, processes: int, seed: int) -> list[Kill]:
    """So many kills at random."""
    draw = random.Random(seed)
    kills = []
    for _ in range(number):
        (phase,) = draw.choices(list(PHASES), list(PHASES.values()))
        victims = ["supervisor", "witness", *(f"rank {rank}" for rank in range(processes))]
        draw.shuffle(victims)
        kills.append(Kill(phase, draw.random(), draw.uniform(0, 0.03), tuple(victims)))
    return kills


@dataclass
class Report:
    """What came of it."""

    kills: list[tuple[str, str]] = field(default_factory=list)
    """(phase, victim) of each."""
    finished: int = 0
    difference: float = 0.0
    """The largest from the undisturbed run, over all values of all finished runs."""
    leftovers: list[str] = field(default_factory=list)
    """Processes, files in shared memory, temporary files."""
    slowest: float = 0.0
    """Seconds until the last process of a killed run was gone."""
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        def counted(index: int) -> str:
            return ", ".join(f"{name} {count}" for name, count in Counter(kill[index] for kill in self.kills).items())

        lines = [
            f"{len(self.kills)} kills: {counted(0)}",
            f"victims: {counted(1)}",
            f"{self.finished} finished runs, largest difference {self.difference}",
            f"the last process was gone after {self.slowest:.1f} s at most",
            f"{len(self.leftovers)} leftovers, {len(self.problems)} problems",
            *self.problems,
        ]
        return "\n".join(lines)


class Killer:
    """Runs one recipe in a folder of its own, and kills it."""

    def __init__(self, folder: Path, processes: int, overrides: Sequence[str], say: Callable[[str], None]) -> None:
        self.folder = folder
        self.report = Report()
        self._say = say
        self._temporary = folder / "tmp"
        self._temporary.mkdir(parents=True)
        (folder / "recipe.yaml").write_text(RECIPE, "utf-8")
        rows = [
            {"query": f"第{n}位：" + "头痛，" * (n % 7 + 1), "response": "多休息，" * (n % 5 + 1) + f"第{n}天复诊。"}
            for n in range(22)
        ]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / "rows.jsonl").write_text(lines, "utf-8")
        self._command = [sys.executable, "-m", "medframe", "run", "recipe.yaml", f"processes={processes}", *overrides]
        self._shared_before = _shared_memory()
        self._begin("undisturbed")
        self._spans = self._undisturbed()
        self._expected = self._result()

    def go(self, kills: Iterable[Kill]) -> Report:
        """Kill so often, each run being gone on with until it has finished."""
        pending, runs = list(kills), 0
        while pending:
            runs += 1
            assert runs <= 3 * (len(self.report.kills) + 3), "the runs finish before they are killed"
            self._begin(f"run-{runs}")
            while not self._is_finished():
                begun = len(self.report.problems)
                if self._round(pending[0] if pending else None):
                    pending.pop(0)
                elif pending:  # it came too late
                    pending[0] = replace(pending[0], at=pending[0].at / 2)
                for problem in self.report.problems[begun:]:
                    self._say(f"PROBLEM {problem}")
                if len(self.report.problems) > begun and not self._is_finished():
                    self._keep()
                    break
            else:
                self._compare()
        return self.report

    # One run.

    def _begin(self, name: str) -> None:
        self._out, self._cache = self.folder / name, self.folder / f"{name}-cache"  # so that making that is killed too

    def _start(self) -> None:
        self._newest = max(self._checkpoints(), default=0)
        environment = {
            "OMP_NUM_THREADS": "1",
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "MEDFRAME_CACHE": str(self._cache),
            "TMPDIR": str(self._temporary),
            "KILLER": str(self.folder),
        }
        with (self.folder / "stdout").open("w") as out, (self.folder / "stderr").open("w") as err:
            self._process = subprocess.Popen(
                [*self._command, f"out={self._out}", "--resume"],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self._started = time.monotonic()

    def _undisturbed(self) -> dict[str, float]:
        """Run to the end; how long its phases took, in seconds, training being one step."""
        self._start()
        seen: dict[str, float] = {}
        while self._process.poll() is None:
            seen.setdefault(self._phase(), time.monotonic())
            time.sleep(0.01)
        assert self._process.returncode == 0, self._said("stderr")
        training, end = min(seen.get("training", math.inf), seen.get("save", math.inf)), seen["end"]
        return {
            "start-up": training - self._started,
            "training": (end - training) / STEPS,
            "end": time.monotonic() - end,
        }

    def _round(self, kill: Kill | None) -> bool:
        """Start or go on, and kill; whether that came before the end."""
        self._start()
        struck = self._strike(kill) if kill else None
        if struck:
            self.report.kills.append(struck)
        killed = time.monotonic()
        self._process.wait() if struck is None else self._gone(killed)
        self._look(struck)
        if struck:
            number, (phase, victim) = len(self.report.kills), struck
            when, newest = killed - self._started, max(self._checkpoints(), default=0)
            self._say(f"{number:4} {phase:9} {victim:10} at {when:5.1f} s, checkpoint {self._newest} to {newest}")
        return struck is not None

    def _strike(self, kill: Kill) -> tuple[str, str] | None:
        """Wait for the moment and kill: the phase in which that was, and the victim; None when the run has ended."""
        reached: float | None = None
        while self._process.poll() is None:
            now, phase = time.monotonic(), self._phase()
            if reached is None and self._is_reached(kill, phase):
                reached = now
                if kill.phase == "end":
                    reached += kill.at * self._spans["end"]
                elif kill.phase == "training":
                    reached += kill.at * self._spans["training"]
            if reached and now >= reached and (phase == kill.phase or kill.phase == "start-up"):
                time.sleep(kill.delay)
                if struck := self._struck(kill):
                    return struck
            time.sleep(0.002)
        return None

    def _is_reached(self, kill: Kill, phase: str) -> bool:
        if kill.phase == "start-up":
            return time.monotonic() - self._started >= kill.at * self._spans["start-up"]
        if kill.phase == "end":
            return phase == "end"
        first = min(self._newest + 1, STEPS)
        return phase != "start-up" and self._step() >= first + int(kill.at**2 * (STEPS - first))

    def _struck(self, kill: Kill) -> tuple[str, str] | None:
        """Kill, unless the phase is over."""
        there = self._processes()
        victim = next((name for name in kill.victims if name in there), None)
        if victim is None:
            return None
        # Stopped, it cannot leave the phase any more: what is said of the kill is true.
        os.kill(there[victim], signal.SIGSTOP)
        phase = self._phase()
        hit = phase == kill.phase or kill.phase == "start-up"
        os.kill(there[victim], signal.SIGKILL if hit else signal.SIGCONT)
        return (phase, victim) if hit else None

    def _phase(self) -> str:
        said = self._said("stdout")
        if "Training on " not in said:
            return "start-up"
        if "Loading what was saved" in said or (self._out / "proof.safetensors").exists():
            return "end"
        if any(path.suffix in (".saving", ".old") for folder in ("checkpoints", ".") for path in self._in(folder)):
            return "save"
        return "training" if self._step() > (self._newest or -1) else "start-up"

    # What it leaves.

    def _gone(self, killed: float) -> None:
        """Wait until nothing of the run is there; what stays is a problem."""
        while left := self._left():
            if time.monotonic() - killed > PATIENCE:
                self.report.leftovers += left
                self._problem(f"left {PATIENCE:.0f} s after the kill: {', '.join(left)}")
                for pid in self._processes().values():
                    os.kill(pid, signal.SIGKILL)
                shutil.rmtree(self._temporary)
                self._temporary.mkdir()
                self._shared_before |= _shared_memory()
                break
            time.sleep(0.05)
        self._process.wait()
        self.report.slowest = max(self.report.slowest, time.monotonic() - killed)

    def _left(self) -> list[str]:
        self._process.poll()
        left = [f"{name} ({pid})" for name, pid in self._processes().items()]
        left += [str(path) for path in self._temporary.iterdir()]
        return left + [str(path) for path in _shared_memory() - self._shared_before]

    def _processes(self) -> dict[str, int]:
        """Those alive that have come of the run, by what they are: process id."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                environment = (folder / "environ").read_bytes()
                if f"KILLER={self.folder}\0".encode() not in environment:
                    continue
                variables = dict(entry.partition(b"=")[::2] for entry in environment.split(b"\0"))
                name = "supervisor" if int(folder.name) == self._process.pid else "another"
                if b"RANK" in variables:
                    name = f"rank {variables[b'RANK'].decode()}"
                elif b"medframe.witness" in (folder / "cmdline").read_bytes():
                    name = "witness"
                found[name if name not in found else f"{name}, {folder.name}"] = int(folder.name)
            except OSError:
                continue  # ended meanwhile
        return found

    def _look(self, struck: tuple[str, str] | None) -> None:
        """What the round said, and what it left in the run directory."""
        code, said, errors = self._process.returncode, self._said("stdout"), self._said("stderr")
        expected = {None: 0, "supervisor": -signal.SIGKILL}.get(struck and struck[1], 1)
        told = f"{struck[1]} was killed by SIGKILL" if struck and struck[1].startswith("rank") else ""
        if code != expected or told not in errors:
            self._problem(f"ended with {code}, not {expected}: {errors[-600:]}")
        if "Traceback" in said + errors or "damaged" in said:
            self._problem(f"said: {said}{errors}")
        if "Training on " in said:
            going = f"Going on from checkpoint-{self._newest}." if self._newest else "starting at the beginning"
            if going not in said:
                self._problem(f"did not say {going!r}: {said}")
        for number in self._checkpoints()[-KEPT:]:
            folder = self._out / "checkpoints" / f"checkpoint-{number}"
            if wrong := damage(folder):
                self._problem(f"{folder.name} is not whole: {wrong}")
        for name in ("manifest.json", "ledger.json", "comparison.json"):
            if (self._out / name).exists():
                json.loads((self._out / name).read_text("utf-8"))

    def _compare(self) -> None:
        """A finished run with the undisturbed one."""
        self.report.finished += 1
        found, expected = self._result(), self._expected
        apart = _apart(found["metrics"], expected["metrics"])
        self.report.difference = max(self.report.difference, apart)
        left = [str(p) for top in (self._out, self._cache) for p in top.rglob("*") if p.suffix in LEFT_WHILE_WRITING]
        if found == expected and not left:
            shutil.rmtree(self._out)
            shutil.rmtree(self._cache)
            self._say(f"     finished: the same, {len(found['metrics'])} lines")
            return
        differing = [name for name, value in expected.items() if found[name] != value]
        self._problem(f"finished: {', '.join(differing)} differ, metrics by {apart}; left: {left}")
        self._say(f"PROBLEM {self.report.problems[-1]}")
        self._keep()

    def _result(self) -> dict[str, Any]:
        manifest = json.loads((self._out / "manifest.json").read_text("utf-8"))
        metrics = [json.loads(line) for line in self._log().splitlines()]
        for line in metrics:
            line.pop("supervised_tokens_per_second", None)
        return {"metrics": metrics, "trained": manifest["trained"], "result": manifest["result"]}

    def _is_finished(self) -> bool:
        file = self._out / "manifest.json"
        return file.exists() and json.loads(file.read_text("utf-8"))["state"] == "finished"

    def _checkpoints(self) -> list[int]:
        return sorted(int(path.name[11:]) for path in self._in("checkpoints") if path.name[11:].isdecimal())

    def _in(self, folder: str) -> list[Path]:
        return list((self._out / folder).iterdir()) if (self._out / folder).is_dir() else []

    def _step(self) -> int:
        """The last that is logged."""
        lines = self._log().rpartition("\n")[0].splitlines()
        return int(json.loads(lines[-1])["step"]) if lines else -1

    def _log(self) -> str:
        file = self._out / "metrics.jsonl"
        return file.read_text("utf-8") if file.exists() else ""

    def _said(self, stream: str) -> str:
        return (self.folder / stream).read_text("utf-8", "replace")

    def _problem(self, what: str) -> None:
        self.report.problems.append(f"{self._out.name}, after kill {len(self.report.kills)}: {what}")

    def _keep(self) -> None:
        self._out.rename(self._out.with_name(f"{self._out.name}-problem"))


def _shared_memory() -> set[Path]:
    """What lies in /dev/shm and is in no living process's hands."""
    lying = set(Path("/dev/shm").iterdir())
    if lying:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                maps = (folder / "maps").read_text()
                held = {path for path in lying if f" {path}" in maps}
                held |= {Path(os.readlink(descriptor)) for descriptor in (folder / "fd").iterdir()} & lying
            except OSError:
                continue
            lying -= held
    return lying


def _apart(found: list[dict[str, float]], expected: list[dict[str, float]]) -> float:
    """The largest difference of two runs' values; infinite where they do not have the same."""
    if [list(line) for line in found] != [list(line) for line in expected]:
        return math.inf
    pairs = zip(found, expected, strict=True)
    return max(abs(one[name] - other[name]) for one, other in pairs for name in other)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--deepspeed", default="zero2", help="as trainer.deepspeed; null: none")
    parser.add_argument("--use", choices=RANDOM, default="lora", help="the trainer")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    overrides = [*RANDOM[given.use], f"trainer.deepspeed={given.deepspeed}"]
    folder = Path(tempfile.mkdtemp(prefix="kills-"))

    def say(line: str) -> None:
        print(line, flush=True)

    say(f"{given.kills} kills, seed {given.seed}, {' '.join(overrides)}, {given.processes} processes, in {folder}")
    report = Killer(folder, given.processes, overrides, say).go(drawn(given.kills, given.processes, given.seed))
    say(str(report))
    if not report.problems:
        shutil.rmtree(folder)
    sys.exit(1 if report.problems else 0)


if __name__ == "__main__":
    main()
