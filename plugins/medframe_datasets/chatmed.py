"""ChatMed's data sets: consultations, and traditional Chinese medicine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from medframe import DatasetSource, Row, Sample, Turn
from medframe_datasets.meta import kept


@dataclass(kw_only=True)
class ChatMedConsult(DatasetSource):
    """Online consultations: a patient's question and one answer (ChatMed-Consult).

    Rows are `{"query": ..., "response": ...}`, as michael-wzhu/ChatMed's training script reads them. The shipped
    test outputs of that project hold queries already wrapped as `<s>问：...答：`; they are no training rows.
    """

    query: str = "query"
    """The field that holds the patient's question."""
    response: str = "response"
    """The field that holds the answer."""

    bundled: ClassVar[str | None] = "samples/chatmed_consult.jsonl"
    licence: ClassVar[str] = (
        "ChatMed_Consult_Dataset: non-commercial research; answers by gpt-3.5-turbo. Sample: Apache-2.0"
    )
    homepage: ClassVar[str] = "https://github.com/michael-wzhu/ChatMed"

    def sample(self, row: Row) -> Sample:
        turns = (Turn("user", row.text(self.query)), Turn("assistant", row.text(self.response)))
        return Sample(turns, row.where, kept(row, "id"))


@dataclass(kw_only=True)
class ShenNongTCM(ChatMedConsult):
    """Questions on traditional Chinese medicine and one answer each (ShenNong-TCM, "ChatMed-TCM").

    Rows are `{"query": ..., "response": ...}`: the project's README says that ChatMed's own code trains on them.
    """

    bundled: ClassVar[str | None] = "samples/shennong_tcm.jsonl"
    licence: ClassVar[str] = (
        "ShenNong_TCM_Dataset: Apache-2.0 on the hub, but its README allows academic research only; "
        "questions and answers by gpt-3.5-turbo. Sample: Apache-2.0"
    )
    homepage: ClassVar[str] = "https://github.com/michael-wzhu/ShenNong-TCM-LLM"
