"""The Baichuan backbone."""

from __future__ import annotations

from typing import ClassVar

from medframe.testing import BackboneContract


class TestBaichuan(BackboneContract):
    component = "baichuan"


class TestBaichuanWithRopeAndNormHead(BackboneContract):
    component = "baichuan"
    fields: ClassVar = {"positions": "rope", "head": "norm"}
