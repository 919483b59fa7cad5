"""Recipe -> run directory: encode, train, prove, describe."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from medframe import hub, quiet
from medframe import manifest as manifests
from medframe import world as worlds
from medframe.agreement import check_agreed, check_shared
from medframe.card import card, comparison, shown
from medframe.checkpoints import checkpoints, newest, put_all_right, step
from medframe.errors import PromptError, RunError, Terminated
from medframe.lengths import lengths
from medframe.prepare import Prepared, check_context, job, prepare
from medframe.progress import RunLog
from medframe.proof import reloaded
from medframe.recipe import Recipe
from medframe.saving import write
from medframe.trained import read_manifest

OWN = (
    "recipe.yaml",
    "manifest.json",
    "ledger.json",
    "metrics.jsonl",
    "comparison.json",
    "evaluation.json",
    "README.md",
    "report.html",
    "proof.safetensors",
    "checkpoints",
    "adapter",
    "model",
    "tensorboard",
    "wandb",
    "trackers.json",
)
"""All that a run, or what looks at it, writes into its directory; nothing else there is ever touched."""

Say = Callable[[str], None]


def run(recipe: Recipe, say: Say, resume: bool = False, overwrite: bool = False) -> None:
    """Train as the recipe says; `recipe.out` then holds the run, proven.

    In a launch of several processes each calls this; rank 0 alone speaks and writes, and goes on alone once all have
    trained. RunError for a directory that holds another run or processes that have different data, DataError for data
    that cannot be used, ProofError when what was saved is not what was trained. KeyboardInterrupt and Terminated pass
    once the trainer has saved a checkpoint.
    """
    world = worlds.join(recipe.patience, recipe.out)
    try:
        _run(recipe, say if world.rank == 0 else _silent, resume, overwrite)
    except BaseException:
        world.abandon()
        raise


def _run(recipe: Recipe, say: Say, resume: bool, overwrite: bool) -> None:
    out, world = recipe.out, worlds.current()
    check_learns(recipe)
    if world.rank == 0:
        check_free(out, resume, overwrite)
    _check_apart(recipe)
    quiet.libraries()
    if resume and (out / "manifest.json").exists():
        # A branch may have moved on meanwhile: the run stays with the commits that it began on.
        hub.pin(read_manifest(out).get("hub", {}))
    with world.first_then_others():  # who find the store that the first has made
        prepared = prepare(recipe)
    for ledger in prepared.ledgers:
        for line in ledger.summary():
            say(line)
    if dropped := prepared.train.dropped():
        say(f"WARNING batching.map_batch: {dropped:,} tokens are dropped from every epoch, as published")
    check_context(recipe, prepared)
    manifests.check_adapters(recipe.backbone)
    description = manifests.describe(recipe, prepared) | {"processes": world.size}
    description["prompt"]["chat_template"] = _give_chat_template(prepared, say)
    check_agreed(description)
    with _locked(out) if world.rank == 0 else nullcontext():
        checkpoint, log = None, None
        if world.rank == 0:
            check_free(out, resume, overwrite)  # again: encoding may have taken long
            checkpoint = _begin(recipe, prepared, description, resume, say)
            log = RunLog(out / "metrics.jsonl", step(checkpoint) if checkpoint else -1)
        name = world.share(checkpoint.name if checkpoint else None)
        checkpoint = out / "checkpoints" / name if name else None
        check_shared(out)
        _fit(recipe, prepared, log, checkpoint, say)
        world.leave()
        if log:
            _finish(recipe, prepared, description, log, say)
        # A launcher takes it for a failure when some of its processes end long before the others.
        world.part()


def _begin(recipe: Recipe, prepared: Prepared, description: dict[str, Any], resume: bool, say: Say) -> Path | None:
    """Make the directory ready, and write down what the run is; the checkpoint to go on from."""
    out, checkpoint = recipe.out, None
    put_all_right(out)
    if resume and (out / "manifest.json").exists():
        checkpoint = newest(out, say)
        if checkpoint is None and checkpoints(out):
            raise RunError(f"{out}: no checkpoint is whole; --overwrite begins anew")
    if checkpoint:
        _check_same(out, recipe, description)
        _forget_finish(out)
        say(f"Going on from {checkpoint.name}.")
        for damaged in checkpoints(out)[checkpoints(out).index(checkpoint) + 1 :]:
            shutil.rmtree(damaged)  # its steps are taken again, and a trainer would count it among those to keep
    else:
        if resume:
            say(f"No checkpoint in {out}: starting at the beginning.")
        _clear(out)
    write(out / "recipe.yaml", f"# As run{_profile(recipe)}.\n{recipe.yaml()}")
    write(out / "ledger.json", _ledger_json(prepared))
    write(out / "manifest.json", _json(description))
    return checkpoint


def _give_chat_template(prepared: Prepared, say: Say) -> str:
    """Give the tokenizer, which is saved with what is trained, the format's chat template; what became of it, in words.

    Where the format has none, the tokenizer's own goes: it lays conversations out as nothing was trained.
    """
    try:
        prepared.tokenizer.chat_template = prepared.encoder.prompt.chat_template(prepared.tokenizer)
    except PromptError as error:
        prepared.tokenizer.chat_template = None
        say(f"No chat template is saved with the model, medframe alone lays out as trained: {error}.")
        return f"none: {error}"
    return "saved with the tokenizer"


def _fit(recipe: Recipe, prepared: Prepared, log: RunLog | None, checkpoint: Path | None, say: Say) -> None:
    world = worlds.current()
    by = f", by {world.size} processes" if world.size > 1 else ""
    say(f"Training on {len(prepared.train):,} examples, {len(prepared.held_out or ()):,} held out{by}.")
    try:
        recipe.trainer.fit(job(recipe, prepared, log or _unwritten, checkpoint))
    except (KeyboardInterrupt, Terminated):
        if log:
            log.close()
            last = newest(recipe.out, say)
            say(f"Saved {last}; go on with --resume." if last else "Nothing saved yet.")
        raise
    finally:
        if log:
            log.close()
    if prepared.train.reason:
        say(f"Padded, not packed: {prepared.train.reason}.")


def _finish(recipe: Recipe, prepared: Prepared, description: dict[str, Any], log: RunLog, say: Say) -> None:
    """The last proof, then the manifest that says the run has finished."""
    out = recipe.out
    say("Loading what was saved in a fresh process, to prove it.")
    asked = _questions(prepared, recipe.compare)
    answers = reloaded(out, [ids for ids, _, _ in asked])
    compared = [
        {"prompt": prompt, "expected": expected, "before": before, "after": after}
        for (_, prompt, expected), (before, after) in zip(asked, answers, strict=True)
    ]
    write(out / "comparison.json", _json(compared))
    description |= {
        "state": "finished",
        "trained": manifests.trained_content(out),
        "batching": {"kind": prepared.train.kind, "reason": prepared.train.reason},
        "result": {
            "steps": log.steps,
            "held_out_loss": log.before_and_after(),
        },
    }
    # Last in the file: it is long.
    description["base"] = description.pop("base")
    write(out / "README.md", card(recipe, description, prepared.ledgers))
    write(out / "manifest.json", _json(description))
    if losses := log.before_and_after():
        say(f"Held-out loss per supervised token: {shown(losses[0], 3)} before, {losses[1]:.3f} after.")
    if recipe.compare and prepared.held_out and not compared:
        say("No answers are compared: every token is trained, so the examples do not tell where an answer begins.")
    if compared:
        say(comparison(compared, tiny=recipe.backbone.weights == "tiny"))
    say(f"Run directory: {out}\nTalk to it: medframe chat {out}")


def _questions(prepared: Prepared, count: int) -> list[tuple[list[int], str, str]]:
    """(prompt ids, prompt, expected answer) of the first held-out examples, up to the last answer of each."""
    found = []
    held_out, decode = prepared.held_out, prepared.tokenizer.decode
    for number in range(min(count, len(held_out or ()))):
        assert held_out is not None
        examples, index = held_out.example(number)
        ids, trained = examples.ids(index).tolist(), examples.trained(index).tolist()
        end = max(i for i, t in enumerate(trained) if t) + 1
        start = next((i for i in range(end, 0, -1) if not trained[i - 1]), 0)
        if start:
            prompt, answer = (str(decode(part, skip_special_tokens=True)) for part in (ids[:start], ids[start:end]))
            found.append((ids[:start], prompt.strip(), answer.strip()))
    return found


def check_learns(recipe: Recipe) -> None:
    """RunError for weights that are there to measure with."""
    if recipe.backbone.is_random:
        raise RunError(
            f"backbone.weights: {recipe.backbone.weights} is there to measure with (medframe bench, medframe check): "
            "nothing is learnt from random weights of this size; name real ones, or tiny"
        )


def check_free(out: Path, resume: bool, overwrite: bool) -> None:
    """RunError unless a run may write into `out`: nothing there that it did not make, no run that nobody gave up."""
    if resume and overwrite:
        raise RunError("--resume goes on with a run, --overwrite begins anew: give one of them")
    if out.exists() and not out.is_dir():
        raise RunError(f"out: {out} is a file; name a directory")
    if (out / "manifest.json").exists():
        finished = read_manifest(out)["state"] == "finished"
        if resume and finished:
            raise RunError(f"{out}: this run has finished; --overwrite begins anew")
        begun = any((out / name).exists() for name in ("checkpoints", "adapter", "model"))
        if (begun or finished) and not resume and not overwrite:
            how = "--overwrite begins anew" if finished else "--resume goes on with it, --overwrite begins anew"
            raise RunError(f"out: {out} already holds a run; {how}, out=DIR writes elsewhere")
    elif out.is_dir() and (strange := [f.name for f in out.iterdir() if not _begun(f.name)]):
        raise RunError(f"out: {out} holds other files ({strange[0]}) and no run; name another directory")


def _check_apart(recipe: Recipe) -> None:
    """RunError when `out` holds, or lies in, something that the recipe reads: a run would write into its own source."""
    out = recipe.out.resolve()
    backbone = recipe.backbone
    read = [name for name in (backbone.weights, backbone.tokenizer, *backbone.adapters) if name]
    for source in recipe.data:
        read += [source.dataset.path] if isinstance(source.dataset.path, str) else source.dataset.path
    for path in (Path(name).expanduser().resolve() for name in read if Path(name).expanduser().exists()):
        if path.is_relative_to(out) or (path.is_dir() and out.is_relative_to(path)):
            raise RunError(
                f"out: {recipe.out} and {path}, which the recipe reads, lie in each other; name another directory"
            )


def _begun(name: str) -> bool:
    """Whether a run that was killed before it had a manifest may have left this."""
    return name in ("recipe.yaml", "ledger.json", ".lock") or name.endswith(".writing")


def _check_same(out: Path, recipe: Recipe, description: dict[str, Any]) -> None:
    """RunError unless the run in `out` is the one that the recipe describes: a resumed run is one run."""
    before = _flat(OmegaConf.to_container(OmegaConf.load(out / "recipe.yaml")))
    now = _flat(recipe.config)
    changed = [
        f"{key}: {before.get(key)!r} then, {now.get(key)!r} now"
        for key in sorted(
            {*before, *now} - {"out", "compare", "processes", "patience", "trainer.report_to", "trainer.keep"}
        )
        if before.get(key) != now.get(key) and not key.startswith("decoding.")
    ]
    old = read_manifest(out)
    bound = {"tokenizer": "tokenizer", "prompt": "prompt format", "data": "data"}
    changed += [f"the {label} has changed" for name, label in bound.items() if old[name] != description[name]]
    if old["base"]["fingerprint"] != description["base"]["fingerprint"]:  # it may lie elsewhere by now
        changed.append("the base model has changed")
    if changed:
        raise RunError(*(f"--resume: {out} was begun otherwise: {change}" for change in changed))


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix.removesuffix("."): value}
    return {key: leaf for k, part in value.items() for key, leaf in _flat(part, f"{prefix}{k}.").items()}


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / ".lock", timeout=0):
            yield
    except Timeout:
        raise RunError(f"out: another process is at work in {out}") from None


def _clear(out: Path) -> None:
    # The manifest first: what is left after a kill in the middle is no run.
    for name in sorted(OWN, key=lambda name: name != "manifest.json"):
        for path in (out / name, out / f"{name}.saving", out / f"{name}.old"):
            linked = path.is_symlink() or not path.is_dir()
            path.unlink(missing_ok=True) if linked else shutil.rmtree(path)


def _forget_finish(out: Path) -> None:
    for name in ("proof.safetensors", "comparison.json", "README.md"):
        (out / name).unlink(missing_ok=True)


def _ledger_json(prepared: Prepared) -> str:
    held_out = prepared.held_out
    rows = [str(e.where(i)) for e, i in map(held_out.example, range(len(held_out)))] if held_out else []
    training = lengths([ledger.source for ledger in prepared.ledgers[: len(prepared.train.selections)]], prepared.train)
    sources = [ledger.to_json() for ledger in prepared.ledgers]
    return _json({"sources": sources, "training": training, "held_out": rows})


def _profile(recipe: Recipe) -> str:
    return f", profile {recipe.profile}" if recipe.profile else ""


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1, default=str) + "\n"


def _silent(line: str) -> None:
    """What the other ranks say, rank 0 says too."""


def _unwritten(step: int, of: int, values: Mapping[str, float]) -> None:
    """Rank 0 has the log."""
