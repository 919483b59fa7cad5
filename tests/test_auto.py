"""The backbone `auto`: any causal language model of the installed transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medframe import BackboneError
from medframe.testing import BackboneContract
from medframe_backbones.auto import Auto


class TestAuto(BackboneContract):
    component = "auto"
