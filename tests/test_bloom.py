"""Bloom and Huozi: the contract, and the same numbers as transformers' own Bloom."""

from __future__ import annotations

from medframe.testing import BackboneContract


class TestBloom(BackboneContract):
    component = "bloom"


class TestHuozi(BackboneContract):
    component = "huozi"
