"""A composed recipe -> a typed, validated Recipe with its components built, or every problem found in it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from medframe import hub
from medframe.backbone import RANDOM, Backbone
from medframe.batch import Batching
from medframe.compose import Composed
from medframe.dataset import DatasetSource
from medframe.decoding import Decoding
from medframe.encode import Limits
from medframe.errors import MedframeError, PluginError, RecipeError
from medframe.fields import fields_of
from medframe.plugins import FRAME_KEYS, Component, Kind, catalog
from medframe.prompt import PromptFormat
from medframe.source import Mix, Source
from medframe.trainer import Trainer

T = TypeVar("T")


@dataclass(kw_only=True)
class Frame:
    """The top-level keys of a recipe that are plain values."""

    out: str = MISSING
    """The run directory, relative to the working directory."""
    seed: int = 42
    """Seed of the split, the order of the examples, the initial adapter and dropout."""
    compare: int = 5
    """Held-out questions answered before and after training, shown at the end; 0: none."""
    processes: int = 1
    """Processes that train together on this machine; a launch by torchrun, deepspeed or SLURM decides itself."""
    patience: float = 30
    """Minutes that one process may keep the others waiting before the run is stopped."""

    def __post_init__(self) -> None:
        if not self.out:
            raise ValueError("out is empty; name the run directory")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must lie between 0 and 2**32 - 1, not {self.seed}")
        if self.compare < 0:
            raise ValueError(f"compare must be at least 0, not {self.compare}")
        if self.processes < 1:
            raise ValueError(f"processes must be at least 1, not {self.processes}")
        if not 0 < self.patience < 1e6:
            raise ValueError(f"patience must be above 0 and below a million minutes, not {self.patience}")


@dataclass(kw_only=True)
class Split:
    """How many examples are held out, chosen by the seed."""

    fraction: float | None = None
    """Share of the examples."""
    rows: int | None = None
    """Number of examples."""

    def __post_init__(self) -> None:
        if (self.fraction is None) == (self.rows is None):
            raise ValueError("give either fraction or rows, or a data section of its own with use")
        if self.fraction is not None and not 0 < self.fraction < 1:
            raise ValueError(f"fraction must lie between 0 and 1, not {self.fraction}")
        if self.rows is not None and self.rows < 1:
            raise ValueError(f"rows must be at least 1, not {self.rows}")


@dataclass(frozen=True)
class Recipe:
    """Everything a run needs, validated; nothing heavy is loaded yet."""

    out: Path
    seed: int
    compare: int
    processes: int
    patience: float
    backbone: Backbone
    data: tuple[Source, ...]
    held_out: Split | Source | None
    prompt: PromptFormat
    limits: Limits
    batching: Batching
    trainer: Trainer
    decoding: Decoding
    profile: str | None
    config: Mapping[str, Any]
    """The composed recipe with every default filled in, interpolations kept."""
    components: Mapping[str, Component]
    """Section -> the component that it uses."""

    def yaml(self) -> str:
        """The composed recipe as a file that runs again by itself."""
        return OmegaConf.to_yaml(OmegaConf.create(dict(self.config)))


def build(composed: Composed, require_all: bool = True) -> Recipe:
    """The recipe with its components built; RecipeError holds every problem found, not only the first.

    With `require_all` False, a `???` that is left stays as it is: enough to print the recipe, not to run it.
    """
    builder = _Builder(composed, require_all)
    recipe = builder.recipe()
    if builder.problems:
        raise RecipeError(*builder.problems)
    assert recipe is not None
    return recipe


def speaker(composed: Composed) -> tuple[Backbone, PromptFormat, Decoding]:
    """The backbone, the prompt format and the decoding alone: all that is needed to talk to a trained model."""
    builder = _Builder(composed, require_all=True)
    backbone, prompt = (builder._component(kind, kind, composed.config.get(kind)) for kind in ("backbone", "prompt"))
    section = composed.config.get("decoding") or {}
    decoding = builder._section(Decoding, "decoding", OmegaConf.to_container(section) if section else {})
    if builder.problems or decoding is None:
        raise RecipeError(*builder.problems)
    return backbone, prompt, decoding


def single(composed: Composed, kind: Kind) -> tuple[Any, Component]:
    """What the section of this kind alone uses, built, and its row of the catalog; RecipeError as `build`."""
    builder = _Builder(composed, require_all=True)
    built = builder._component(kind, kind, composed.config.get(kind))
    if builder.problems:
        raise RecipeError(*builder.problems)
    return built, builder.components[kind]


def dataset(name: str, file: Path) -> DatasetSource:
    """A data set's component for this file, all else as by default; RecipeError for a name that nobody offers."""
    cls: type[DatasetSource] = catalog().find("dataset", name).load()
    return cls(path=str(file))


class _Builder:
    def __init__(self, composed: Composed, require_all: bool) -> None:
        self.composed = composed
        self.require_all = require_all
        self.problems: list[str] = []
        self.config: dict[str, Any] = {}
        self.components: dict[str, Component] = {}

    def recipe(self) -> Recipe | None:
        config = OmegaConf.to_container(self.composed.config, resolve=False)
        assert isinstance(config, dict)
        top = [f.name for f in fields(Frame)]
        sections = ["backbone", "data", "held_out", "prompt", "limits", "batching", "trainer", "decoding"]
        for key in config:
            if key not in (*top, *sections):
                self._unknown(str(key), str(key), [*top, *sections, "include", "profile", "profiles"])
        frame = self._typed(Frame, "", {key: config[key] for key in top if key in config})
        backbone = self._component("backbone", "backbone", config.get("backbone"))
        data = self._data(config.get("data"))
        held_out = self._held_out(config.get("held_out"))
        prompt = self._component("prompt", "prompt", config.get("prompt"))
        limits = self._section(Limits, "limits", config.get("limits"))
        batching = self._section(Batching, "batching", config.get("batching"))
        trainer = self._component("trainer", "trainer", config.get("trainer"))
        if backbone and trainer and backbone.weights_dtype and not trainer.beside_quantised():
            self._problem(
                "backbone.weights_dtype",
                f"{backbone.weights_dtype} weights cannot be trained themselves, nor be shared by DeepSpeed: take the "
                "trainer lora without deepspeed",
            )
        decoding = self._section(Decoding, "decoding", config.get("decoding"))
        if self.problems or not (frame and backbone and prompt and limits and batching and trainer and decoding):
            return None
        order = [*top, *sections]
        return Recipe(
            out=Path(frame.out).expanduser(),
            seed=frame.seed,
            compare=frame.compare,
            processes=frame.processes,
            patience=frame.patience,
            backbone=backbone,
            data=data,
            held_out=held_out,
            prompt=prompt,
            limits=limits,
            batching=batching,
            trainer=trainer,
            decoding=decoding,
            profile=self.composed.profile,
            config={key: self.config[key] for key in order if key in self.config},
            components=self.components,
        )

    def _data(self, section: Any) -> tuple[Source, ...]:
        if not isinstance(section, dict) or not any(section.values()):
            self._problem("data", "name at least one data set, such as data: {consult: {use: chatmed-consult}}")
            return ()
        for name in section:
            # Dotted keys lead to the sections, and to the place of a mistake.
            if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name) or name == "held_out":
                self._problem(
                    "data", f"{name!r} cannot name a data section; take letters, digits, - and _, but not held_out"
                )
                return ()
        self.config["data"] = {}
        found = (self._source(f"data.{name}", str(name), part) for name, part in section.items() if part is not None)
        return tuple(source for source in found if source)

    def _source(self, path: str, name: str, section: Any) -> Source | None:
        own = {f.name for f in fields(Mix)}
        given = section if isinstance(section, dict) else {}
        mix = self._typed(Mix, path, {key: value for key, value in given.items() if key in own})
        rest = {key: value for key, value in section.items() if key not in own} if given else section
        dataset = self._component("dataset", path, rest)
        if mix is None or dataset is None:
            return None
        return Source(name, dataset, mix)

    def _held_out(self, section: Any) -> Split | Source | None:
        if section is None:
            self.config["held_out"] = None
            return None
        if isinstance(section, dict) and "use" in section:
            if "weight" in section:
                self._problem("held_out.weight", "unknown key: what is held out is measured, not mixed")
            return self._source("held_out", "held_out", section)
        return self._section(Split, "held_out", section)

    def _component(self, kind: str, path: str, section: Any) -> Any:
        """The component that the section uses, built; None once its problems are noted."""
        example = sorted(c.name for c in catalog().components if c.kind == kind)[:3]
        section = OmegaConf.to_container(section) if isinstance(section, DictConfig) else section
        if not isinstance(section, dict) or not isinstance(section.get("use"), str):
            self._problem(path, f"say which {kind} with use: NAME, such as {', '.join(example)}")
            return None
        try:
            component = catalog().find(kind, section["use"])
            cls = component.load()
        except (RecipeError, PluginError) as error:
            self._problem(f"{path}.use", *error.args)
            return None
        self.components[path] = component
        self._store(path, {"use": section["use"]})
        return self._typed(cls, path, {key: value for key, value in section.items() if key != "use"})

    def _section(self, cls: type[T], path: str, section: Any) -> T | None:
        if section is not None and not isinstance(section, dict):
            self._problem(path, f"must be a mapping, not {section!r}")
            return None
        return self._typed(cls, path, section or {})

    def _typed(self, cls: type[T], path: str, values: dict[str, Any]) -> T | None:
        """An instance of the dataclass from the section's values, which are stored as composed."""
        before = len(self.problems)
        base = OmegaConf.structured(cls)
        prefix = f"{path}." if path else ""
        types = {f.name: f.type for f in fields_of(cls)}
        for name, value in values.items():
            key = f"{prefix}{name}"
            if name not in types:
                self._unknown(key, str(name), [*types, *self._frames_keys(path)])
                continue
            value = self._verbatim(key, types[name], value)
            if name in getattr(cls, "path_fields", ()) and value == "":
                self._problem(key, "is empty; give a path")
            elif name in getattr(cls, "path_fields", ()) and value not in getattr(cls, "path_words", ()):
                value = self._rooted(key, value, hub_ids=issubclass(cls, Backbone))
            try:
                if value == MISSING:
                    base[name] = MISSING  # a merge would let the default stand
                else:
                    base = OmegaConf.merge(base, {name: value})
            except (OmegaConfBaseException, ValueError, TypeError) as error:
                said = str(error).partition("\n")[0]
                if types[name].startswith("list[") and isinstance(value, str):
                    said = f"must be a list: [{value}]"
                self._problem(key, f"{said} ({types[name]})")
        if path or cls is Frame:
            self._store(path, OmegaConf.to_container(base, resolve=False, throw_on_missing=False))
        if len(self.problems) > before:
            return None
        return self._instance(cls, path, base)

    def _instance(self, cls: type[T], path: str, config: Any) -> T | None:
        prefix = f"{path}." if path else ""
        for missing in sorted(OmegaConf.missing_keys(config)):
            if self.require_all:
                meaning = next((f.meaning for f in fields_of(cls) if f.name == missing), "")
                self._problem(f"{prefix}{missing}", f"is not set (???): {meaning} Give {prefix}{missing}=...")
        if self.problems and OmegaConf.missing_keys(config):
            return None
        try:
            # Any key of the recipe may be referred to by interpolation, the frame's defaults too.
            defaults = {f.name: f.default for f in fields(Frame) if f.default is not MISSING}
            config._set_parent(OmegaConf.merge(defaults, self.composed.config))
            OmegaConf.resolve(config)
            if OmegaConf.missing_keys(config):
                values: Any = OmegaConf.to_container(config)
                return cls(**values)
            instance = OmegaConf.to_object(config)
        except OmegaConfBaseException as error:
            self._problem(path or "recipe", str(error).partition("\n")[0])
        except MedframeError as error:
            self._problem(path or "recipe", *error.args)
        except ValueError as error:
            self._problem(path or "recipe", str(error))
        else:
            return instance  # type: ignore[return-value]
        return None

    def _frames_keys(self, path: str) -> list[str]:
        return sorted(FRAME_KEYS[self.components[path].kind]) if path in self.components else []  # type: ignore[index]

    def _verbatim(self, key: str, type_name: str, value: Any) -> Any:
        """A command-line value for a text field as it was typed: `007` and `no` are not YAML there."""
        typed = self.composed.overrides.get(key)
        words = re.split(r"\s*\|\s*", re.sub(r"Optional\[(.*)\]", r"\1 | None", type_name))
        is_text = "str" in words or repr(typed) in type_name.replace('"', "'")
        if typed is None or not is_text or (value is None and "None" in words):
            return value
        if isinstance(value, list | dict) or "${" in typed or typed == MISSING:
            return value
        return typed

    def _rooted(self, key: str, value: Any, hub_ids: bool) -> Any:
        """The path made absolute, from the folder of the file that wrote it, or the working directory.

        What names no file there stays where it may be a word (`tiny`, `sample`, `random:7b`) or something on a hub.
        """
        if isinstance(value, list):
            return [self._rooted(key, each, hub_ids) for each in value]
        if not isinstance(value, str) or "${" in value or value in ("tiny", "sample", MISSING):
            return value
        if "://" in value:
            return value
        if hub_ids and value.startswith(RANDOM):
            return f"{RANDOM}{self._rooted(key, value.removeprefix(RANDOM), hub_ids)}"
        origin = self.composed.origin(key)
        path = (origin.base if origin else Path.cwd()) / Path(value).expanduser()
        word = r"\w[\w-]*(:[\w.-]+)?" + (f"|{hub.ID}" if hub_ids else "")
        return value if re.fullmatch(word, value) and not path.exists() else os.path.abspath(path)

    def _store(self, path: str, values: Any) -> None:
        section = self.config
        for key in path.split(".") if path else ():
            section = section.setdefault(key, {})
        section.update(values)

    def _unknown(self, key: str, name: str, known: Iterable[str]) -> None:
        near = get_close_matches(name, list(known), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        self._problem(key, f"unknown key; {hint}")

    def _problem(self, key: str, *messages: str) -> None:
        where = self.composed.place(key) if key == "recipe" else f"{self.composed.place(key)}: {key}"
        self.problems += [f"{where}: {message}" for message in messages]
