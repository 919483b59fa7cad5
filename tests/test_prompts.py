"""The published prompt formats: held to the kit, and laid out as their authors did, span by span."""

from __future__ import annotations

from typing import ClassVar

from medframe.testing import PromptContract


class TestBenTsaoMed(PromptContract):
    component = "bentsao-med"


class TestBenTsaoBloom(PromptContract):
    component = "bentsao-bloom"


class TestBenTsaoLiterature(PromptContract):
    component = "bentsao-literature"


class TestBenTsaoLiteratureAsPublished(PromptContract):
    component = "bentsao-literature"
    fields: ClassVar = {"train_turns": "last"}


class TestDisc(PromptContract):
    component = "disc"


class TestDiscWithoutBos(PromptContract):
    component = "disc"
    fields: ClassVar = {"bos": False}


class TestBaichuanChat(PromptContract):
    component = "baichuan-chat"


class TestBaichuan2Chat(PromptContract):
    component = "baichuan2-chat"


class TestBaichuan2ChatAsPublished(PromptContract):
    component = "baichuan2-chat"
    fields: ClassVar = {"history_eos": False}


class TestChineseAlpaca(PromptContract):
    component = "chinese-alpaca"
