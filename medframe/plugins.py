"""Entry points -> Catalog of components: which exist, who offers them, and what is broken. None is imported yet."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal

import pluggy

from medframe import hooks
from medframe.backbone import Backbone
from medframe.dataset import DatasetSource
from medframe.errors import PluginError, RecipeError
from medframe.prompt import PromptFormat
from medframe.trainer import Trainer

Kind = Literal["backbone", "dataset", "prompt", "trainer"]
CONTRACTS: Mapping[Kind, type] = {
    "backbone": Backbone,
    "dataset": DatasetSource,
    "prompt": PromptFormat,
    "trainer": Trainer,
}
FRAME_KEYS: Mapping[Kind, frozenset[str]] = {
    "backbone": frozenset({"use"}),
    "dataset": frozenset({"use", "weight", "limit"}),
    "prompt": frozenset({"use"}),
    "trainer": frozenset({"use"}),
}


@dataclass(frozen=True)
class Component:
    """One row of the catalog. `kind` and `name` are empty for a plugin that is broken as a whole."""

    kind: str
    name: str
    plugin: str
    distribution: str
    version: str
    target: str
    """`module:Class`."""
    state: Literal["ok", "broken", "clash"] = "ok"
    error: str | None = None

    @property
    def summary(self) -> str:
        """The first line of the class's docstring, read from the file's text without importing it."""
        module, _, name = self.target.partition(":")
        tree = _syntax_tree(module) if self.kind else None
        for node in tree.body if tree else ():
            if isinstance(node, ast.ClassDef) and node.name == name:
                return (ast.get_docstring(node) or "").partition("\n")[0]
        return ""

    def load(self) -> type[Any]:
        """The class itself, imported; PluginError with the reason when it is no component of its kind."""
        if self.state != "ok":
            raise PluginError(f"{self.kind} {self.name!r}: {self.error}")
        module, _, name = self.target.partition(":")
        try:
            cls = getattr(importlib.import_module(module), name)
        except (Exception, SystemExit) as error:
            raise PluginError(f"{self._who()} cannot be imported: {type(error).__name__}: {error}") from error
        if found := problem(cls, self.kind):
            raise PluginError(f"{self._who()} {found}")
        return cls  # type: ignore[no-any-return]

    def _who(self) -> str:
        return f"{self.kind} {self.name!r} ({self.target}, from {self.distribution} {self.version})"


@dataclass(frozen=True)
class Catalog:
    """Every component that the installed plugins offer, built-ins first."""

    components: tuple[Component, ...] = field(default_factory=tuple)

    def find(self, kind: str, name: str) -> Component:
        """The component to use; RecipeError with the nearest name for an unknown one, PluginError for a clash."""
        for component in self.components:
            if (component.kind, component.name) == (kind, name):
                if component.state != "ok":
                    raise PluginError(f"{kind} {name!r}: {component.error}")
                return component
        from difflib import get_close_matches

        known = sorted(c.name for c in self.components if c.kind == kind)
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        broken = "".join(
            f"; plugin {c.plugin!r} of {c.distribution} could not be loaded: {c.error}"
            for c in self.components
            if not c.kind
        )
        raise RecipeError(f"unknown {kind} {name!r}: {hint}known: {', '.join(known)}{broken}")


@functools.cache
def catalog() -> Catalog:
    """The catalog of this environment, read once."""
    return Catalog(tuple(_mark_clashes(list(_discover()))))


def _discover() -> Iterator[Component]:
    # Our own loop rather than pluggy's load_setuptools_entrypoints: that lets one broken plugin end the
    # program, and silently skips a second plugin whose entry point has a name already used.
    manager = pluggy.PluginManager("medframe")
    manager.add_hookspecs(hooks)
    for entry in sorted(entry_points(group="medframe"), key=_builtins_first):
        whole = Component("", "", entry.name, _distribution(entry), _version(entry), entry.value)
        try:
            plugin = entry.load()
            manager.register(plugin, name=f"{whole.distribution}:{entry.name}")
            found = list(_offers(manager, plugin, whole))
            manager.check_pending()
        except (Exception, SystemExit) as error:
            yield replace(whole, state="broken", error=f"{type(error).__name__}: {error}".replace("\n", " "))
            if (broken := manager.get_plugin(f"{whole.distribution}:{entry.name}")) is not None:
                manager.unregister(broken)
            continue
        if not found:
            reason = "offers nothing: no function marked @medframe.hookimpl returns a component"
            yield replace(whole, state="broken", error=reason)
        yield from found


def _offers(manager: pluggy.PluginManager, plugin: Any, whole: Component) -> Iterator[Component]:
    for kind in CONTRACTS:
        for implementation in getattr(manager.hook, f"{kind}s").get_hookimpls():
            if implementation.plugin is not plugin:
                continue
            offer = implementation.function()
            if not isinstance(offer, Mapping):
                raise PluginError(f"{kind}s() must return a mapping of names to classes, not {offer!r}")
            for name, target in offer.items():
                path = target if isinstance(target, str) else f"{target.__module__}:{target.__qualname__}"
                component = replace(whole, kind=kind, name=name, target=path)
                if _file_of(path.partition(":")[0]) is None:
                    component = replace(component, state="broken", error=f"no module for {path!r}")
                yield component


def _mark_clashes(components: list[Component]) -> Iterator[Component]:
    for component in components:
        rivals = [c for c in components if c.kind and (c.kind, c.name) == (component.kind, component.name)]
        if len(rivals) > 1:
            who = " and ".join(f"{c.distribution} {c.version} ({c.target})" for c in rivals)
            component = replace(component, state="clash", error=f"offered by {who}; uninstall one")
        yield component


def problem(cls: Any, kind: str) -> str | None:
    """Why `cls` cannot serve as a component of this kind; None when it can."""
    contract = CONTRACTS[kind]  # type: ignore[index]
    if not (isinstance(cls, type) and issubclass(cls, contract)):
        return f"is not a subclass of medframe.{contract.__name__}"
    if not is_dataclass(cls) or "__dataclass_fields__" not in cls.__dict__:
        return "is not a dataclass: put @dataclass above the class"
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        return f"does not implement {', '.join(missing)}"
    if taken := FRAME_KEYS[kind] & set(cls.__dataclass_fields__):  # type: ignore[index]
        return f"has a field named {', '.join(sorted(taken))}, which is the frame's own key"
    if hidden := sorted(set(cls.__dataclass_fields__) & (set(dir(contract)) - set(contract.__dataclass_fields__))):  # type: ignore[attr-defined]
        return f"has a field named {', '.join(hidden)}, which hides what the contract has under that name"
    from omegaconf import OmegaConf

    try:
        OmegaConf.structured(cls)
    except Exception as error:
        return f"has a field that a recipe cannot hold: {str(error).partition(chr(10))[0]}"
    return None


def _builtins_first(entry: EntryPoint) -> tuple[bool, str, str]:
    return (_distribution(entry) != "medframe", _distribution(entry), entry.name)


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "?"


def _version(entry: EntryPoint) -> str:
    return entry.dist.version if entry.dist else "?"


@functools.cache
def _file_of(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin else None


@functools.cache
def _syntax_tree(module: str) -> ast.Module | None:
    file = _file_of(module)
    try:
        return ast.parse(file.read_text("utf-8")) if file else None
    except (OSError, SyntaxError, UnicodeDecodeError):
        return None
