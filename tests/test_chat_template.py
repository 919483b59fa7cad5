"""The prompt format `chat-template`."""

from __future__ import annotations

from medframe.testing import PromptContract


class TestChatTemplate(PromptContract):
    component = "chat-template"
    backbone = "auto"
