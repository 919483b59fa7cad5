"""What a sample keeps of its row besides the conversation: the row's own id and the like."""

from __future__ import annotations

from typing import Any

from medframe import Row


def kept(row: Row, *names: str) -> dict[str, Any]:
    """Those of the named fields that the row has, as they are."""
    fields = row.value if isinstance(row.value, dict) else {}
    return {name: fields[name] for name in names if name in fields}
