"""What a plugin may offer: one hook for each kind of component."""

from __future__ import annotations

from collections.abc import Mapping

import pluggy

Offer = Mapping[str, str | type]
"""Component name -> its class, or "module:Class" to import only when it is used."""

hookspec = pluggy.HookspecMarker("medframe")
hookimpl = pluggy.HookimplMarker("medframe")


@hookspec
def backbones() -> Offer:  # type: ignore[empty-body]
    """Subclasses of `medframe.Backbone`."""


@hookspec
def datasets() -> Offer:  # type: ignore[empty-body]
    """Subclasses of `medframe.DatasetSource`."""


@hookspec
def prompts() -> Offer:  # type: ignore[empty-body]
    """Subclasses of `medframe.PromptFormat`."""


@hookspec
def trainers() -> Offer:  # type: ignore[empty-body]
    """Subclasses of `medframe.Trainer`."""
