"""Dialogues in shapes of their own: MedDialog and MOSS."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, cast

from medframe import DataError, DatasetSource, Role, Row, Sample, Turn, kind_of
from medframe_datasets.meta import kept


def _speakers() -> dict[str, str]:
    return {"病人": "user", "医生": "assistant", "0": "user", "1": "assistant"}


@dataclass(kw_only=True)
class MedDialog(DatasetSource):
    """Consultations between patients and doctors, many turns each (MedDialog, Chinese).

    Three shapes are read. Rows of the hub's `zh` are `{"dialogue_id": ..., "dialogue_turns": [{"speaker": "病人",
    "utterance": ...}, ...]}`, or `{"speaker": [0, 1, ...], "utterance": [...]}` there, as `datasets` exports them.
    Rows of `processed.zh` are a list of texts such as `病人：...` and `医生：...`, alone or as the field `utterances`.

    What one side says several times in a row becomes one turn, each on a line of its own.
    """

    dialogue: str = "dialogue_turns"
    """The field that holds what was said by whom."""
    speaker: str = "speaker"
    """The field inside it that says who speaks."""
    utterance: str = "utterance"
    """The field inside it that holds the text."""
    utterances: str = "utterances"
    """The field that holds a list of texts, each beginning with who speaks; read where `dialogue` is missing."""
    speakers: dict[str, str] = field(default_factory=_speakers)
    """Who speaks, by the file's word: user or assistant. Other words are an error; add them here."""
    joiner: str = "\n"
    """What stands between two utterances of one side in a row."""
    leading_doctor: Literal["refuse", "drop"] = "refuse"
    """A dialogue that the doctor begins, so that nothing was asked: call it bad | leave out the doctor's opening."""

    bundled: ClassVar[str | None] = "samples/meddialog.jsonl"
    licence: ClassVar[str] = "unknown; the copyright is haodf.com's. Sample: Apache-2.0"
    homepage: ClassVar[str] = "https://github.com/UCSD-AI4H/Medical-Dialogue-System"

    def __post_init__(self) -> None:
        for word, role in self.speakers.items():
            if role not in ("user", "assistant"):
                raise ValueError(f"speakers: {word!r} must be user or assistant, not {role!r}")

    def sample(self, row: Row) -> Sample:
        turns: list[Turn] = []
        for number, (speaker, text) in enumerate(self._said(row), 1):
            if speaker not in self.speakers:
                raise DataError(f"utterance {number}: speaker {speaker!r} is none of {', '.join(self.speakers)}")
            role = cast(Role, self.speakers[speaker])
            if not turns and role == "assistant":
                if self.leading_doctor == "refuse":
                    raise DataError("the doctor speaks first; leading_doctor: drop leaves out what answers nothing")
            elif turns and turns[-1].role == role:
                turns[-1] = Turn(role, f"{turns[-1].text}{self.joiner}{text}")
            else:
                turns.append(Turn(role, text))
        return Sample(tuple(turns), row.where, kept(row, "dialogue_id", "file_name"))

    def _said(self, row: Row) -> list[tuple[str, str]]:
        """Who said what, in order."""
        if isinstance(row.value, list):
            return self._prefixed(row.value, "the row")
        if isinstance(row.value, dict) and self.utterances in row.value and self.dialogue not in row.value:
            return self._prefixed(row[self.utterances], f"field {self.utterances!r}")
        dialogue = row[self.dialogue]
        if isinstance(dialogue, dict):
            columns = Row(dialogue, row.where)
            speakers, texts = columns[self.speaker], columns[self.utterance]
            if not (isinstance(speakers, list) and isinstance(texts, list) and len(speakers) == len(texts)):
                raise DataError(f"field {self.dialogue!r}: speakers and utterances must be lists of one length")
            dialogue = [{self.speaker: who, self.utterance: text} for who, text in zip(speakers, texts, strict=True)]
        if not isinstance(dialogue, list):
            raise DataError(f"field {self.dialogue!r} must be a list of utterances, it is {kind_of(dialogue)}")
        said = []
        for number, each in enumerate(dialogue, 1):
            one = Row(each, row.where)
            try:
                said.append((str(one[self.speaker]), one.text(self.utterance)))
            except DataError as error:
                raise DataError(f"field {self.dialogue!r}, utterance {number}: {error}") from None
        return said

    def _prefixed(self, texts: Any, where: str) -> list[tuple[str, str]]:
        if not isinstance(texts, list):
            raise DataError(f"{where} must be a list of texts, it is {kind_of(texts)}")
        said = []
        for number, text in enumerate(texts, 1):
            if not isinstance(text, str):
                raise DataError(f"{where}, utterance {number}: must be text, it is {kind_of(text)}")
            speaker, colon, rest = text.partition("：")
            if not colon or speaker not in self.speakers:
                known = ", ".join(f"{name}：" for name in self.speakers)
                raise DataError(f"{where}, utterance {number}: must begin with who speaks, one of {known}")
            said.append((speaker, rest))
        return said


@dataclass(kw_only=True)
class MossSFT(DatasetSource):
    """General dialogues in Chinese and English, many turns each (moss-003-sft-data, 33,000 in DISC-Med-SFT).

    Rows are `{"conversation_id": ..., "meta_instruction": ..., "num_turns": 2, "chat": {"turn_1": {"Human":
    "<|Human|>: ...<eoh>\\n", "Inner Thoughts": ..., "Commands": ..., "Tool Responses": ..., "MOSS":
    "<|MOSS|>: ...<eom>\\n"}, "turn_2": ...}}`, or the older `{"prefix": ..., "plain_text": "[Human]: ...<eoh> [MOSS]:
    ...<eoa> ..."}`. The markers are taken off; a text without its markers is an error. The meta instruction, which
    says that the assistant is MOSS, is left out unless `system` asks for it. Firefly's copy of the data set is read
    by `firefly`.
    """

    on_tools: Literal["refuse", "drop"] = "refuse"
    """A turn with inner thoughts, commands or tool responses: call the row bad | keep only what is said."""
    system: bool = False
    """Give the meta instruction as a system turn."""

    bundled: ClassVar[str | None] = "samples/moss_sft.jsonl"
    licence: ClassVar[str] = (
        "CC BY-NC 4.0 (repository), CC BY 4.0 (hub card); answers by gpt-3.5-turbo. Sample: Apache-2.0"
    )
    homepage: ClassVar[str] = "https://github.com/OpenMOSS/MOSS"

    def sample(self, row: Row) -> Sample:
        if isinstance(row.value, dict) and "chat" not in row.value:
            preamble, turns = "prefix", _plain(row)
        else:
            preamble, turns = "meta_instruction", self._chat(row["chat"])
        if self.system:
            turns.insert(0, Turn("system", row.text(preamble)))
        return Sample(tuple(turns), row.where, kept(row, "id", "conversation_id", "category"))

    def _chat(self, chat: Any) -> list[Turn]:
        if not isinstance(chat, dict):
            raise DataError(f"field 'chat' must be an object with turn_1, turn_2, ..., it is {kind_of(chat)}")
        turns: list[Turn] = []
        for number in range(1, len(chat) + 1):
            name = f"turn_{number}"
            if not isinstance(chat.get(name), dict):
                raise DataError(f"field 'chat' has {len(chat)} turns, and no object {name!r} among them")
            turns += self._round(name, chat[name])
        return turns

    def _round(self, name: str, said: dict[str, Any]) -> list[Turn]:
        texts = {}
        for part, text in said.items():
            pattern = _PARTS.get(part)
            if pattern is None:
                raise DataError(f"{name}: {part!r} is none of {', '.join(_PARTS)}")
            if not isinstance(text, str) or not (match := pattern.fullmatch(text)):
                raise DataError(f"{name}: {part!r} lacks its markers; it must match {pattern.pattern}")
            texts[part] = match[1]
        if missing := {"Human", "MOSS"} - texts.keys():
            raise DataError(f"{name}: has no {' and no '.join(sorted(missing))}")
        used = [part for part, text in texts.items() if part not in ("Human", "MOSS") and text.strip() != "None"]
        if used and self.on_tools == "refuse":
            raise DataError(f"{name}: has {', '.join(used)}; on_tools: drop keeps only what is said")
        return [Turn("user", texts["Human"]), Turn("assistant", texts["MOSS"])]


def _part(marker: str, end: str) -> re.Pattern[str]:
    return re.compile(rf"<\|{marker}\|>: ?(.*)<{end}>\n?", re.DOTALL)


_PARTS = {
    "Human": _part("Human", "eoh"),
    "Inner Thoughts": _part("Inner Thoughts", "eot"),
    "Commands": _part("Commands", "eoc"),
    "Tool Responses": _part("Results", "eor"),
    "MOSS": _part("MOSS", "eom"),
}
_PLAIN = re.compile(r"\s*\[Human\]: ?(.*?)<eoh>\s*\[MOSS\]: ?(.*?)<eoa>\s*", re.DOTALL)


def _plain(row: Row) -> list[Turn]:
    if "plain_text" not in row.value:
        raise DataError("neither a field 'chat' nor a field 'plain_text'")
    text = row.text("plain_text")
    turns: list[Turn] = []
    at = 0
    while at < len(text):
        match = _PLAIN.match(text, at)
        if match is None:
            raise DataError(f"field 'plain_text': no '[Human]: ...<eoh> [MOSS]: ...<eoa>' at character {at + 1}")
        turns += [Turn("user", match[1]), Turn("assistant", match[2])]
        at = match.end()
    return turns
