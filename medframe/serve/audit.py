"""A line for each request, by which it can be told later what was asked and answered, without telling it."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medframe.errors import RunError

KEY = "MEDFRAME_AUDIT_KEY"


class Audit:
    """JSON lines with the time, who asked, keyed hashes of question and answer, token counts and the outcome.

    The hashes are HMAC-SHA256 by the key in MEDFRAME_AUDIT_KEY, else by one that is forgotten when the server ends: a
    plain hash of a short question could be found by trying.
    """

    def __init__(self, file: Path | None) -> None:
        """Lines are added to `file`, else go to standard error; RunError where it cannot be written."""
        self._key = os.environ.get(KEY, secrets.token_hex()).encode()
        try:
            self._file = file.open("a", encoding="utf-8") if file else sys.stderr
        except OSError as error:
            raise RunError(f"--audit: {file}: {error.strerror or error}") from None

    def add(self, **values: Any) -> None:
        """Write one line."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        print(json.dumps({"time": now, **values}, ensure_ascii=False), file=self._file, flush=True)

    def hash(self, ids: Iterable[int]) -> str:
        """Of a question or an answer, in token ids."""
        return hmac.new(self._key, " ".join(map(str, ids)).encode(), hashlib.sha256).hexdigest()[:32]
