"""DISC-MedLLM's data set."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from medframe_datasets.general import Messages


def _speakers() -> dict[str, str]:
    return {"user": "user", "assistant": "assistant"}


@dataclass(kw_only=True)
class DiscMedSFT(Messages):
    """Reconstructed consultations, knowledge-graph questions and general dialogues, many turns each (DISC-Med-SFT).

    Rows are `{"_id": ..., "source": ..., "conversation": [{"role": "user" | "assistant", "content": ...}, ...]}`, one
    JSON object a line. Published training passes over messages of any other role in silence; here such a row is
    bad, and the reason names the role. `roles: {patient: user, doctor: assistant}` reads the project's evaluation
    dialogues. `_id` and `source` stay with the sample.
    """

    messages: str = "conversation"
    """The field that holds the list of messages."""
    roles: dict[str, str] = field(default_factory=_speakers)
    """Who speaks, by the file's word: system, user or assistant. Other words are an error; add them here."""

    bundled: ClassVar[str | None] = "samples/disc_med_sft.jsonl"
    licence: ClassVar[str] = (
        "Apache-2.0 (hub card and repository); made from the sets that it names, see theirs, and rewritten by GPT-3.5. "
        "Sample: Apache-2.0"
    )
    homepage: ClassVar[str] = "https://github.com/FudanDISC/DISC-MedLLM"
    ids: ClassVar[tuple[str, ...]] = ("_id", "source")
