"""A line for each request, by which it can be told later what was asked and answered, without telling it."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import secrets
import sys
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medframe.errors import RunError

KEY = "MEDFRAME_AUDIT_KEY"
_log = logging.getLogger("medframe.serve")


class Audit:
    """JSON lines with the time, who asked, keyed hashes of question and answer, token counts and the outcome.

    The hashes are HMAC-SHA256 by the key in MEDFRAME_AUDIT_KEY, else by one that is forgotten when the server ends: a
    plain hash of a short question could be found by trying.
    """

    def __init__(self, file: Path | None) -> None:
        """Lines are added to `file`, else go to standard error; RunError where it cannot be written."""
        self._key = (os.environ.get(KEY) or secrets.token_hex()).encode()
        try:
            # Unbuffered: a line is written at once and whole, beside those of other processes.
            self._file = file.open("ab", buffering=0) if file else None
        except OSError as error:
            raise RunError(f"--audit: {file}: {error.strerror or error}") from None

    def add(self, **values: Any) -> None:
        """Write one line; what the file does not take goes to standard error, and is answered all the same."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, **values}, ensure_ascii=False)
        try:
            if self._file:
                self._file.write(f"{line}\n".encode())
                return
        except OSError as error:
            _log.error("the audit takes no more (%s); a line that it lacks follows", error.strerror or error)
        with suppress(OSError):  # nobody reads it
            print(line, file=sys.stderr, flush=True)

    def hash(self, ids: Iterable[int]) -> str:
        """Of a question or an answer, in token ids."""
        return hmac.new(self._key, " ".join(map(str, ids)).encode(), hashlib.sha256).hexdigest()[:32]
