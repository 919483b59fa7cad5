"""A base model and adapters -> a model directory: planned from headers, streamed, proven, and only then there."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import medframe
from medframe import manifest as manifests
from medframe import vocabulary
from medframe.backbone import Dtype
from medframe.errors import BackboneError, ProofError, RunError, SaveError
from medframe.fingerprint import tokenizer_fingerprint
from medframe.merge import adapter as adapters
from medframe.merge.beside import write_beside
from medframe.merge.card import card
from medframe.merge.check import check_logits
from medframe.merge.plan import Plan, plan, told
from medframe.merge.skeleton import skeleton
from medframe.merge.sources import Sources, sources
from medframe.merge.tensors import DTYPES, FLOATING, of_model
from medframe.merge.write import Written, write
from medframe.model import Loaded, carry
from medframe.saving import saving

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a merge is done."""

    base: Path | None = None
    """Where the base model of a run lies now, should it have moved."""
    dtype: Dtype | None = None
    """Of the result; None: as the base model is loaded."""
    shard_size: int = 5 * 10**9
    """Bytes of a file, at most."""
    rounding: Literal["each", "once"] = "each"
    """each: after every adapter, as peft | once: after the sum of all."""
    prompt: str | None = None
    """The format that the result is bound to, where no run says it."""
    check: bool = False
    """Whether the logits are compared with those of base and adapters."""


def merge(names: Sequence[str], out: Path, options: Options, say: Say) -> None:
    """Merge what is named, a base and adapters or a run, into the model directory `out`, proven.

    BackboneError and RunError for what does not fit, before any weight is read and anything is written; ProofError when
    what was written is not what it should be; SaveError when the disk refuses. In each case there is no `out`.
    """
    with _as_typed():
        _merge(names, out, options, say)


def _merge(names: Sequence[str], out: Path, options: Options, say: Say) -> None:
    _check_free(out)
    found = sources(names, options.base, options.prompt)
    if found.backbone.is_random:
        raise RunError(f"{found.backbone.weights} is there to measure with: nothing is merged into random weights")
    if options.dtype:
        found = replace(found, backbone=replace(found.backbone, dtype=options.dtype))
    backbone = found.backbone
    known = [adapters.read(directory) for directory in backbone.adapter_directories()]
    vocabulary.check(backbone)
    manifests.check_adapters(backbone)
    config: Any = backbone.load_config()
    if getattr(config, "quantization_config", None):
        raise BackboneError(f"{backbone.weights} is quantised; merge into the model that it was made of")
    stored = of_model(backbone.directory())
    model = skeleton(backbone)
    planned = plan(stored, known, model, _dtype(backbone.dtype, config, stored))
    _check_room(out, planned)
    count = f"{len(known)} adapter{'s' * (len(known) != 1)}"
    say(
        f"{count} into {len(planned.outputs)} tensors, of which {planned.changed} change; "
        f"{told(planned.bytes)} in {DTYPES[planned.dtype]}"
    )
    if found.beside:
        say(
            f"WARNING it was trained beside {found.beside} weights, and is merged into those that are stored: what it "
            "computes is close to what the run does, and not the same"
        )
    with _locked(out), saving(out, "nothing of it is left") as aside:
        written, digests = write(planned, aside, options.shard_size, options.rounding == "once", say)
        proof = _proof(planned, written, digests)
        write_beside(aside, found, config, model, planned)
        description = _description(aside, found, options, planned, proof)
        if options.check:
            description["proof"]["logits"] = check_logits(backbone, aside, found, say)
        # Last in the file: it is long.
        description["weights"] = description.pop("weights")
        (aside / "README.md").write_text(card(out.name, description), "utf-8")
        (aside / "manifest.json").write_text(
            json.dumps(description, ensure_ascii=False, indent=1, default=str) + "\n", "utf-8"
        )
    unchanged = planned.changed - proof["changed"]
    if unchanged:
        say(
            f"WARNING {unchanged} of {planned.changed} tensors are as they were: what the adapters add is lost in the "
            f"rounding of {DTYPES[planned.dtype]}, or nothing; --dtype float32 keeps it"
        )
    _say_end(out, description, say)


@contextmanager
def _as_typed() -> Iterator[None]:
    """Errors without the fields of a recipe, which nobody has written here."""
    try:
        yield
    except BackboneError as error:
        raise BackboneError(*(re.sub(r"^backbone\.\w+: ", "", str(said)) for said in error.args)) from error


def _say_end(out: Path, description: dict[str, Any], say: Say) -> None:
    proof = description["proof"]
    say(
        f"Read again and proven: {proof['changed']} tensors changed, {proof['untouched']} as the base has them, all "
        f"finite. Content sha256 {proof['content'][:16]}"
    )
    if description["prompt"]:
        say(f"Model directory: {out}\nTalk to it: medframe chat {out}")
        return
    say(
        f"Model directory: {out}\nNothing says how it was trained to be spoken to: medframe chat {out} --prompt NAME, "
        "or merge again with --prompt NAME to bind it to a format"
    )


def _check_free(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"--out: {out} is in the way; name a directory that is not there yet")
    if not (above := _above(out)).is_dir():
        raise RunError(f"--out: {above} is a file; name another directory")


def _above(out: Path) -> Path:
    """What there is of the way to it."""
    return next(folder for folder in out.absolute().parents if folder.exists())


def _check_room(out: Path, planned: Plan) -> None:
    free = shutil.disk_usage(_above(out)).free
    if planned.bytes > free:
        raise SaveError(
            f"{out} will take {told(planned.bytes)}, and there is room for {told(free)}; nothing was written"
        )


def _dtype(wanted: str, config: Any, stored: Any) -> str:
    """safetensors' name of the type in which transformers would load the base: as config.json says, else as stored."""
    if wanted == "auto":
        named = getattr(config, "dtype", None)
        wanted = str(named).removeprefix("torch.") if named is not None else ""
    first = next((tensor.dtype for tensor in stored.values() if tensor.dtype in FLOATING), "F32")
    return next((name for name, torch_name in DTYPES.items() if torch_name == wanted), first)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = out.absolute().with_name(f".{out.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=0):
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
    except Timeout:
        raise RunError(f"--out: another process is writing {out}") from None


def _proof(planned: Plan, written: Sequence[Written], digests: Mapping[str, str]) -> dict[str, Any]:
    """What was found of the tensors; ProofError when the adapters change none."""
    changed = sum(tensor.differs for tensor in written)
    if planned.changed and not changed:
        raise ProofError("no tensor has changed: what the adapters add is nothing. Were they saved whole?")
    return {
        "tensors": len(written),
        "changed": changed,
        "untouched": len(written) - planned.changed,
        "content": hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest(),
    }


def _description(aside: Path, found: Sources, options: Options, planned: Plan, proof: dict[str, Any]) -> dict[str, Any]:
    """The manifest, from what has been written; ProofError when it does not open as what was merged."""
    backbone = replace(found.backbone, weights=str(aside), tokenizer=None, adapters=[], dtype="auto")
    opened = Loaded(backbone, found.component, backbone.load_tokenizer(), found.prompt, found.prompt_component)
    description = opened.describe()
    before = replace(opened, tokenizer=found.tokenizer).layout()["prompt"]
    if (description["tokenizer"], description["prompt"]) != (tokenizer_fingerprint(found.tokenizer), before):
        raise ProofError(f"{aside}: the tokenizer that was saved does not cut up text as the one that was loaded")
    description["backbone"]["fields"] |= carry(backbone, aside, "backbone")
    if found.prompt is not None:
        description["prompt"]["fields"] |= carry(found.prompt, aside, "prompt")
        template = "saved with the tokenizer" if found.tokenizer.chat_template else "none"
        description["prompt"]["chat_template"] = template
    return {
        "kind": "model",
        **description,
        "decoding": None if found.decoding is None else asdict(found.decoding),
        "tiny": found.is_tiny,
        "lineage": found.lineage(),
        "merged": {
            "dtype": DTYPES[planned.dtype],
            "rounding": options.rounding,
            "tied": planned.tied,
            "trained_beside": found.beside,
        },
        "proof": proof,
        "libraries": manifests.libraries(),
        "medframe": medframe.__version__,
    }
