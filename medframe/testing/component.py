"""What holds for every component, whatever its kind."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from medframe.fields import fields_of
from medframe.plugins import CONTRACTS, Kind, catalog
from medframe.plugins import problem as problem_of

_IMPORT = """
import importlib, sys
importlib.import_module(sys.argv[1])
print(" ".join(name for name in ("torch", "transformers") if name in sys.modules))
"""


class ComponentContract:
    """Attributes that every contract reads."""

    kind: ClassVar[Kind]
    component: ClassVar[str | type]
    """The component's name in recipes, or its class."""
    fields: ClassVar[Mapping[str, Any]] = {}
    """Its recipe section, without `use`."""

    def cls(self) -> type[Any]:
        """The component's class."""
        if isinstance(self.component, str):
            return catalog().find(self.kind, self.component).load()
        return self.component

    def make(self, **fields: Any) -> Any:
        """The component, built as a recipe builds it, from `self.fields` and these."""
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(self.cls()), dict(self.fields), fields))

    def test_is_found_in_the_catalog(self) -> None:
        if not isinstance(self.component, str):
            pytest.skip("component is a class, not a name")
        found = [c for c in catalog().components if (c.kind, c.name) == (self.kind, self.component)]
        assert found, f"no installed plugin offers a {self.kind} {self.component!r}: pip install it"
        assert found[0].state == "ok", f"{self.component}: {found[0].error}"

    def test_is_a_component(self) -> None:
        cls = self.cls()
        problem = problem_of(cls, self.kind)
        assert problem is None, f"{cls.__name__} {problem}"
        assert issubclass(cls, CONTRACTS[self.kind])

    def test_is_built_from_its_fields(self) -> None:
        assert isinstance(self.make(), self.cls())

    def test_fields_have_a_meaning(self) -> None:
        blank = [field.name for field in fields_of(self.cls()) if not field.meaning]
        assert not blank, f"say what {', '.join(blank)} means, in a docstring below the field"

    def test_fields_leave_the_contract_alone(self) -> None:
        contract = CONTRACTS[self.kind]
        own = set(getattr(contract, "__dataclass_fields__", ()))
        taken = [f.name for f in fields_of(self.cls()) if f.name not in own and hasattr(contract, f.name)]
        assert not taken, f"{', '.join(taken)} of medframe.{contract.__name__} is hidden by a field of that name"

    def test_refuses_an_unknown_key(self) -> None:
        with pytest.raises(OmegaConfBaseException):
            self.make(no_such_key=1)

    def test_says_what_it_is(self) -> None:
        cls = self.cls()
        written = cls.__dict__.get("__doc__") or ""
        # Without a docstring, @dataclass puts the constructor's signature there.
        assert written and not written.startswith(f"{cls.__name__}("), f"{cls.__name__} has no docstring"
        assert inspect.cleandoc(written).partition("\n")[0], "the first line of the docstring is what listings show"

    def test_module_imports_nothing_heavy(self) -> None:
        child = subprocess.run(
            [sys.executable, "-c", _IMPORT, self.cls().__module__],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            text=True,
        )
        assert child.returncode == 0, child.stderr
        heavy = child.stdout.split()
        assert not heavy, f"importing {self.cls().__module__} imports {', '.join(heavy)}: import it where it is used"
