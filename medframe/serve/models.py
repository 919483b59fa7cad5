"""What is served: runs and models by name, those of one base sharing it in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medframe.answer import Answerer
from medframe.decoding import Decoding
from medframe.encode import Encoder
from medframe.errors import RunError
from medframe.trained import Opened, trained

if TYPE_CHECKING:
    from medframe.engine.engine import Engine
    from medframe.serve.limits import Limits

Kind = Literal["tuned", "base"]


@dataclass(frozen=True)
class Served:
    """One name that clients may ask for."""

    name: str
    opened: Opened
    answerer: Answerer
    decoding: Decoding
    kind: Kind
    of: str | None
    """For a base model: the name of what was trained on it."""
    using: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Surrounds each step: chooses the adapter."""

    @property
    def encoder(self) -> Encoder:
        """Its prompt format and tokenizer."""
        return self.answerer.encoder

    def engine(self, limits: Limits) -> Engine:
        """Its place in memory to write answers in, which no question is longer than from now on."""
        from medframe.engine.engine import Engine

        self.answerer.context = min(self.answerer.context or limits.tokens, limits.tokens)
        return Engine(self.answerer.model, limits.tokens, limits.concurrent, self.using)

    def told(self) -> dict[str, Any]:
        """What clients are told of it."""
        prompt = self.encoder.prompt
        decoding = asdict(self.decoding) | {"stop": list(self.decoding.stop)}
        return {
            "format": self.opened.manifest["prompt"]["use"],
            "multi_turn": prompt.multi_turn,
            "system": prompt.system,
            "kind": self.kind,
            "of": self.of,
            "decoding": decoding,
            "fingerprint": self._fingerprint()[:16],
        }

    def _fingerprint(self) -> str:
        """By content, of what answers."""
        return str(self.opened.manifest["base"]["fingerprint"]) if self.kind == "base" else self.opened.fingerprint


def load(runs: Sequence[tuple[str, Opened]], with_base: bool = True) -> dict[str, Served]:
    """All of them by name, and with each adapter its base as NAME-base, in the adapter's format.

    Adapters that were trained on the same base share it in memory, unless one brings more than LoRA.
    RunError for two of the same name.
    """
    served: dict[str, Served] = {}
    shared: dict[str, Any] = {}
    for name, opened in runs:
        for each in _loaded(name, opened, shared, with_base):
            _add(served, each)
    return served


def _add(served: dict[str, Served], each: Served) -> None:
    if each.name in served:
        raise RunError(f"two models are called {each.name}; give each a name: NAME={each.opened.out}")
    served[each.name] = each


def elsewhere(runs: Sequence[tuple[str, Opened]]) -> dict[str, Served]:
    """The same names without any weights: what is needed to lay questions out for an engine that has them."""
    served: dict[str, Served] = {}
    for name, opened in runs:
        whole = trained(opened.backbone, opened.out) if opened.kind == "run" else opened.backbone
        answerer = Answerer(None, opened.encoder, whole.load_config())
        _add(served, Served(name, opened, answerer, opened.decoding, "tuned", None))
    return served


def _loaded(name: str, opened: Opened, shared: dict[str, Any], with_base: bool) -> Iterator[Served]:
    adapter = opened.out / "adapter"
    if opened.kind != "run" or not adapter.is_dir():
        yield Served(name, opened, Answerer(opened.model(), opened.encoder), opened.decoding, "tuned", None)
        return
    base = _base(opened, adapter)
    loaded = "default"
    if base in shared:
        model = shared[base]
        loaded = f"adapter{len(model.peft_config)}"  # a name of the user's may be one that peft cannot have
        model.load_adapter(str(adapter), adapter_name=loaded)
    else:
        model = shared[base] = opened.model()
    answerer = Answerer(model, opened.encoder)
    yield Served(name, opened, answerer, opened.decoding, "tuned", None, _with_adapter(model, loaded))
    if with_base:
        yield Served(f"{name}-base", opened, answerer, opened.decoding, "base", name, model.disable_adapter)


def _base(opened: Opened, adapter: Path) -> str:
    """The same for adapters that can share their base: of the same content, in the same precision and way.

    An adapter that trained modules whole, which peft puts in the place of the base's, has it to itself.
    """
    config = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    alone = str(opened.out.resolve()) if config.get("modules_to_save") else ""
    how = replace(opened.backbone, weights="", tokenizer=None, adapters=[])
    return f"{opened.manifest['base']['fingerprint']} {opened.manifest['tokenizer']} {how} {alone}"


def _with_adapter(model: Any, name: str) -> Callable[[], AbstractContextManager[None]]:
    @contextmanager
    def using() -> Iterator[None]:
        if model.active_adapter != name:
            model.set_adapter(name)
        yield

    return using


def named(argument: str) -> tuple[str | None, Path]:
    """NAME=RUN or RUN, as given on the command line."""
    name, equals, path = argument.partition("=")
    if equals and name and "/" not in name and not Path(argument).exists():
        return name, Path(path)
    return None, Path(argument)
