"""medframe's own components, held to the kit that third parties use."""

from __future__ import annotations

from typing import ClassVar

from medframe.testing import BackboneContract, DatasetContract, PromptContract, TrainerContract


class TestLlama(BackboneContract):
    component = "llama"


class TestChatMedConsult(DatasetContract):
    component = "chatmed-consult"
    rows: ClassVar = [
        {"query": "胃疼怎么办？", "response": "请先做胃镜。"},
        {"query": " 头痛\n三天 ", "response": "多喝水。\n多休息。", "source": "线上"},
    ]
    turns: ClassVar = [
        [("user", "胃疼怎么办？"), ("assistant", "请先做胃镜。")],
        [("user", " 头痛\n三天 "), ("assistant", "多喝水。\n多休息。")],
    ]
    bad_rows: ClassVar = [{"query": "胃疼怎么办？"}, {"query": ["胃疼"], "response": "请先做胃镜。"}, "胃疼怎么办？"]


class TestChatMedConsultByOtherFields(TestChatMedConsult):
    fields: ClassVar = {"query": "ask", "response": "reply"}
    rows: ClassVar = [{"ask": "胃疼怎么办？", "reply": "请先做胃镜。"}]
    turns: ClassVar = [[("user", "胃疼怎么办？"), ("assistant", "请先做胃镜。")]]
    bad_rows: ClassVar = [{"query": "胃疼怎么办？", "response": "请先做胃镜。"}]

    # The sample's fields have the usual names.
    test_bundled_sample_is_whole = None


class TestChatMed(PromptContract):
    component = "chatmed"


class TestChatMedSupervisingAll(PromptContract):
    component = "chatmed"
    fields: ClassVar = {"supervise": "all"}


class TestLora(TrainerContract):
    component = "lora"
    fields: ClassVar = {
        "modules_to_save": ["embed_tokens", "lm_head"],
        "learning_rate": 1e-2,
        "dropout": 0.1,
        "max_steps": 6,
        "logging_steps": 1,
        "save_steps": 2,
    }


class TestFull(TrainerContract):
    component = "full"
    fields: ClassVar = {"learning_rate": 1e-3, "max_steps": 6, "logging_steps": 1, "save_steps": 2}
