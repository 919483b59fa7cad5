"""Recipe files, profiles and overrides -> one mapping, and where in which file each value was written."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from medframe.errors import RecipeError


@dataclass(frozen=True)
class Layer:
    """One mapping to merge, and where it was written."""

    content: dict[str, Any]
    base: Path
    """The folder that the layer's relative paths start from."""
    file: Path | None = None
    """None for the command line."""
    within: tuple[str, ...] = ()
    """Keys that lead to the content in its file, such as profiles, published."""
    profiles: tuple[str, ...] = ()
    """Names of the profiles that the file defines."""


@dataclass(frozen=True)
class Composed:
    """The merged recipe, before anything in it is given a type."""

    config: DictConfig
    layers: tuple[Layer, ...]
    profile: str | None
    overrides: dict[str, str] = field(default_factory=dict)
    """Command-line values as they were typed."""

    def origin(self, key: str) -> Layer | None:
        """The last layer that wrote the dotted key."""
        return next((layer for layer in reversed(self.layers) if _holds(layer.content, key.split("."))), None)

    def place(self, key: str) -> str:
        """Where the dotted key was written, `file:line`, for a message."""
        parent = key
        while (layer := self.origin(parent)) is None:
            parent, _, _ = parent.rpartition(".")
            if not parent:
                return next((_shown(layer.file) for layer in reversed(self.layers) if layer.file), "recipe")
        if layer.file is None:
            return "command line"
        return f"{_shown(layer.file)}:{_line(layer.file, (*layer.within, *parent.split('.')))}"


def compose(recipe: Path, overrides: Sequence[str] = ()) -> Composed:
    """The recipe file with its includes, the chosen profile and the `key=value` overrides merged, in this order.

    Raises RecipeError for a missing file, broken YAML, an include cycle, an unknown profile or a malformed override.
    """
    typed = dict(_split(override) for override in overrides)
    outermost = _read(recipe, None)
    profile = typed.pop("profile", None) or outermost.get("profile")
    profile = None if profile is None else str(profile)  # YAML reads a name such as 2024 as a number
    layers = list(_layers(recipe, profile, ()))
    known = {name for layer in layers for name in layer.profiles}
    if profile is not None and profile not in known:
        near = get_close_matches(str(profile), sorted(known), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise RecipeError(
            f"unknown profile {profile!r}: {hint}{_shown(recipe)} knows {', '.join(sorted(known)) or 'none'}"
        )
    if typed:
        layers.append(Layer(_nested(typed), Path.cwd()))
    config = OmegaConf.create({})
    for layer in layers:
        config = _merge(config, layer)
    return Composed(config, tuple(layers), profile, typed)


def typed(*overrides: str) -> Composed:
    """A recipe of these `key=value` overrides alone."""
    return changed(Composed(OmegaConf.create({}), (), None), overrides)


def sections(content: dict[str, Any], file: Path) -> Composed:
    """A recipe of these sections alone, which stand in `file`: their relative paths start from its folder."""
    return Composed(OmegaConf.create(content), (Layer(content, file.resolve().parent, file),), None)


def changed(composed: Composed, overrides: Sequence[str]) -> Composed:
    """The composed recipe with more `key=value` overrides on top."""
    typed = dict(_split(override) for override in overrides)
    layer = Layer(_nested(typed), Path.cwd())
    config = _merge(copy.deepcopy(composed.config), layer)
    return Composed(config, (*composed.layers, layer), composed.profile, {**composed.overrides, **typed})


def _layers(file: Path, profile: str | None, including: tuple[Path, ...]) -> Iterator[Layer]:
    """The file's includes, then the file, then its own part of the profile: later ones win."""
    if file.resolve() in including:
        chain = " -> ".join(_shown(f) for f in (*including, file.resolve()))
        raise RecipeError(f"{_shown(including[-1])}: include cycle: {chain}")
    content = _read(file, including[-1] if including else None)
    includes = content.pop("include", None) or []
    for include in [includes] if isinstance(includes, str) else includes:
        if not isinstance(include, str):
            raise RecipeError(f"{_shown(file)}:{_line(file, ('include',))}: include must list file names")
        yield from _layers(file.parent / include, profile, (*including, file.resolve()))
    content.pop("profile", None)
    profiles = content.pop("profiles", None) or {}
    for name, part in profiles.items() if isinstance(profiles, dict) else [("profiles", profiles)]:
        if not isinstance(part, dict | None) or not isinstance(profiles, dict):
            raise RecipeError(f"{_shown(file)}:{_line(file, ('profiles', name))}: profiles.{name} must be a mapping")
    yield Layer(content, file.resolve().parent, file, profiles=tuple(map(str, profiles)))
    for name, part in profiles.items():
        if str(name) == profile:
            yield Layer(part or {}, file.resolve().parent, file, ("profiles", str(name)))


def _read(file: Path, includer: Path | None) -> dict[str, Any]:
    where = f"{_shown(includer)}:{_line(includer, ('include',))}: " if includer else ""
    try:
        config = OmegaConf.load(file)
    except FileNotFoundError:
        raise RecipeError(f"{where}no recipe {_shown(file)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{where}{_shown(file)} cannot be read: {error}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(f"{_shown(file)}:{line}: {error.problem or error.context}") from None
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise RecipeError(f"{_shown(file)}: {error}") from None
    content = OmegaConf.to_container(config, resolve=False)
    if not isinstance(content, dict):
        raise RecipeError(f"{_shown(file)}:1: a recipe is a mapping of keys to values, this is a list")
    return {str(key): value for key, value in content.items()}


def _split(override: str) -> tuple[str, str]:
    key, equals, value = override.partition("=")
    if not equals or not all(key.split(".")):
        raise RecipeError(f"command line: {override!r} is not KEY=VALUE, such as trainer.rank=16")
    if key.partition(".")[0] in ("include", "profiles"):
        raise RecipeError(f"command line: {key} belongs in a recipe file")
    return key, value


def _nested(typed: dict[str, str]) -> dict[str, Any]:
    config = OmegaConf.create({})
    for key, value in typed.items():
        try:
            config.merge_with_dotlist([f"{key}={value}"])
        except yaml.YAMLError:  # such as *.jsonl: a text field takes it as it is, any other will say what is wrong
            OmegaConf.update(config, key, value, merge=False)
        except (OmegaConfBaseException, ValueError, TypeError, IndexError) as error:
            reason = str(error).partition("\n")[0]
            raise RecipeError(f"command line: {key}={value} cannot be read: {reason}") from None
    content = OmegaConf.to_container(config, resolve=False)
    assert isinstance(content, dict)
    return content  # type: ignore[return-value]


def _merge(config: DictConfig, layer: Layer) -> DictConfig:
    """Lists replace; a section whose choice changes (`use: other`) starts empty."""
    for path in _sections(layer.content):
        old, new = _get(config, path), _get(layer.content, path)
        if _choice(path, old) and _choice(path, new) not in (None, _choice(path, old)):
            OmegaConf.update(config, path, {}, merge=False)
    try:
        merged = OmegaConf.merge(config, layer.content)
    except (OmegaConfBaseException, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise RecipeError(f"{_shown(layer.file) if layer.file else 'command line'}: {reason}") from None
    assert isinstance(merged, DictConfig)
    # OmegaConf's merge lets an earlier value stand where a later layer says ???.
    for path in _demanded(layer.content):
        OmegaConf.update(merged, path, MISSING, merge=False)
    return merged


def _demanded(content: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _demanded(value, f"{prefix}{key}.")
        elif value == MISSING:
            yield f"{prefix}{key}"


def _sections(content: dict[str, Any]) -> Iterator[str]:
    for name, value in content.items():
        if name in ("backbone", "prompt", "trainer", "held_out", "batching"):
            yield name
        elif name == "data" and isinstance(value, dict):
            yield from (f"data.{source}" for source in value)


def _choice(path: str, section: Any) -> str | None:
    """What the section's other keys belong to: a component, a kind of batching, a way to hold rows out."""
    if not isinstance(section, dict | DictConfig):
        return None
    if path == "held_out":
        return next((key for key in ("use", "rows", "fraction") if section.get(key) is not None), None)
    value = section.get("kind" if path == "batching" else "use")
    return None if value is None else str(value)


def _get(content: Any, path: str) -> Any:
    """The value at the dotted path; None where the path leads nowhere."""
    for key in path.split("."):
        content = content.get(key) if isinstance(content, dict | DictConfig) else None
    return content


def _holds(content: Any, keys: Sequence[str]) -> bool:
    for key in keys:
        if not isinstance(content, dict) or key not in content:
            return False
        content = content[key]
    return True


def _line(file: Path, keys: Sequence[str]) -> int:
    """The line of the deepest of the nested keys that the file has, found by reading it again."""
    node, line = yaml.compose(file.read_text("utf-8-sig"), Loader=yaml.SafeLoader), 1
    for key in keys:
        if not isinstance(node, yaml.MappingNode):
            break
        pairs = [(k, v) for k, v in node.value if k.value == key]
        if not pairs:
            break
        line, node = pairs[-1][0].start_mark.line + 1, pairs[-1][1]
    return line


def _shown(file: Path) -> str:
    """The path as a user would type it."""
    try:
        return str(file.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(file)
