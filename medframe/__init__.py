"""medframe's public names; importing them loads neither torch nor transformers."""

from typing import TYPE_CHECKING, Any

from medframe.attention import by_sample, sample_lengths
from medframe.backbone import Backbone, Dtype
from medframe.dataset import BadRow, DatasetSource, Role, Row, Sample, Turn, Where, kind_of
from medframe.errors import (
    BackboneError,
    DataError,
    MedframeError,
    PluginError,
    PromptError,
    ProofError,
    RecipeError,
    RunError,
    SaveError,
    Terminated,
)
from medframe.footprint import Footprint
from medframe.hooks import hookimpl
from medframe.prompt import Control, PromptFormat, Span, Text
from medframe.trainer import Job, Trainer

if TYPE_CHECKING:
    from medframe.batch import Batches

__version__ = "0.1.0"
__all__ = [
    "Backbone",
    "BackboneError",
    "BadRow",
    "Batches",
    "Control",
    "DataError",
    "DatasetSource",
    "Dtype",
    "Footprint",
    "Job",
    "MedframeError",
    "PluginError",
    "PromptError",
    "PromptFormat",
    "ProofError",
    "RecipeError",
    "Role",
    "Row",
    "RunError",
    "Sample",
    "SaveError",
    "Span",
    "Terminated",
    "Text",
    "Trainer",
    "Turn",
    "Where",
    "by_sample",
    "hookimpl",
    "kind_of",
    "sample_lengths",
]


def __getattr__(name: str) -> Any:
    # Only trainers and tests ask for it, and listing the plugins must be quick.
    if name == "Batches":
        from medframe.batch import Batches

        return Batches
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
