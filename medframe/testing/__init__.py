"""The conformance kit: pytest classes that hold a component to its contract, medframe's own and everybody else's.

Subclass one in a test module and name the component, as recipes name it or as a class:

    from medframe.testing import PromptContract

    class TestMyFormat(PromptContract):
        component = "my-format"

Each contract lists the further attributes it reads. Anything it cannot check is skipped with the reason.
"""

try:
    import pytest
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("medframe.testing is for tests and needs pytest: pip install pytest") from error

# So that a failing assert in the kit shows its values, as it would in the test module itself.
pytest.register_assert_rewrite(
    "medframe.testing.component",
    "medframe.testing.prompt",
    "medframe.testing.dataset",
    "medframe.testing.backbone",
    "medframe.testing.trainer",
)

from medframe.testing.backbone import BackboneContract  # noqa: E402
from medframe.testing.dataset import DatasetContract  # noqa: E402
from medframe.testing.prompt import PromptContract  # noqa: E402
from medframe.testing.trainer import TrainerContract  # noqa: E402

__all__ = ["BackboneContract", "DatasetContract", "PromptContract", "TrainerContract"]
