"""The kit fails what breaks a contract: components that each break it in one way, and the test that must say so."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from medframe import Control, DatasetSource, Job, PromptError, PromptFormat, Row, Sample, Span, Text, Trainer, Turn
from medframe.plugins import catalog
from medframe.testing import BackboneContract, DatasetContract, PromptContract, TrainerContract


def contract(base: type[Any], component: type | str, **attributes: Any) -> Any:
    """The contract class of this component, as a test module would define it."""
    return type("Tested", (base,), {"component": component, **attributes})()


def fails(check: Callable[..., Any], *args: Any, match: str | None = None) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception), match=match):
        check(*args)


@dataclass(kw_only=True)
class Plain(PromptFormat):
    """A sound format, that each of the others breaks."""

    def render(self, turns: Sequence[Turn]) -> list[Span]:
        if [turn.role for turn in turns] not in (["user"], ["user", "assistant"]):
            raise PromptError("one question and one answer")
        spans: list[Span] = [Control("bos"), Text(f"问：{turns[0].text}\n答：")]
        return spans + [s for turn in turns[1:] for s in (Text(turn.text, True), Control("eos", True))]


def test_a_sound_format_passes() -> None:
    tested = contract(PromptContract, Plain)
    for answer in ("三天", "\n三天", " 三天", "3天", "CT"):
        tested.test_prefix_law(answer)
        tested.test_an_answer_ends_with_a_stop_token(answer)
    tested.test_control_tokens_cannot_be_typed()
    tested.test_refuses_what_it_says_it_cannot_lay_out()


def test_another_question_in_training() -> None:
    @dataclass(kw_only=True)
    class OtherMarker(Plain):
        def render(self, turns: Sequence[Turn]) -> list[Span]:
            spans = super().render(turns)
            return [Control("bos"), Text(f"问：{turns[0].text}\n回答：")] if len(turns) == 1 else spans

    fails(contract(PromptContract, OtherMarker).test_prefix_law, "三天", match="asked, the model sees")


def test_a_question_without_its_marker() -> None:
    @dataclass(kw_only=True)
    class NoMarker(Plain):
        def render(self, turns: Sequence[Turn]) -> list[Span]:
            spans = super().render(turns)
            return [Control("bos"), Text(f"问：{turns[0].text}\n")] if len(turns) == 1 else spans

    fails(contract(PromptContract, NoMarker).test_prefix_law, "三天", match="is not trained")


def test_a_space_that_only_training_has() -> None:
    @dataclass(kw_only=True)
    class Space(Plain):
        def render(self, turns: Sequence[Turn]) -> list[Span]:
            spans = super().render(turns)
            return spans if len(turns) == 1 else [*spans[:2], Text(" "), *spans[2:]]

    fails(contract(PromptContract, Space).test_prefix_law, "三天", match="is not trained")


def test_a_loss_on_the_question() -> None:
    @dataclass(kw_only=True)
    class Everything(Plain):
        def render(self, turns: Sequence[Turn]) -> list[Span]:
            return [replace(span, train=True) for span in super().render(turns)]

    tested = contract(PromptContract, Everything)
    fails(tested.test_prefix_law, "三天", match="is trained")
    fails(tested.test_a_question_is_ready_for_an_answer)


def test_control_tokens_parsed_from_text() -> None:
    @dataclass(kw_only=True)
    class Parsing(Plain):
        def render(self, turns: Sequence[Turn]) -> list[Span]:
            spans: list[Span] = []
            for span in super().render(turns):
                if isinstance(span, Control):
                    spans.append(span)
                    continue
                first, *others = span.text.split("</s>")
                spans.append(Text(first, span.train))
                for other in others:
                    spans += [Control("eos", span.train), Text(other, span.train)]
            return spans

    fails(contract(PromptContract, Parsing).test_control_tokens_cannot_be_typed, match="became control tokens")


def test_an_answer_without_an_end() -> None:
    @dataclass(kw_only=True)
    class Endless(Plain):
        def render(self, turns: Sequence[Turn]) -> list[Span]:
            return [span for span in super().render(turns) if span != Control("eos", True)]

    fails(contract(PromptContract, Endless).test_an_answer_ends_with_a_stop_token, "三天", match="learn to stop")


def test_turns_laid_out_that_it_says_it_cannot() -> None:
    @dataclass(kw_only=True)
    class Careless(Plain):
        def render(self, turns: Sequence[Turn]) -> list[Span]:
            return super().render(turns[:2])

    fails(contract(PromptContract, Careless).test_refuses_what_it_says_it_cannot_lay_out)


def test_another_exception_than_promised() -> None:
    @dataclass(kw_only=True)
    class Indexing(Plain):
        def render(self, turns: Sequence[Turn]) -> list[Span]:
            return [Text(turns[0].text), Text(turns[1].text, True)]

    with pytest.raises(IndexError):
        contract(PromptContract, Indexing).test_refuses_what_it_says_it_cannot_lay_out()
    with pytest.raises(IndexError):
        contract(PromptContract, Indexing).test_odd_turns_are_laid_out_or_refused(("user",))


def test_a_random_opening() -> None:
    @dataclass(kw_only=True)
    class Random(Plain):
        def render(self, turns: Sequence[Turn]) -> list[Span]:
            return [Text(str(random.random())), *super().render(turns)]

    fails(contract(PromptContract, Random).test_is_deterministic)


@dataclass(kw_only=True)
class Templated(Plain):
    """The sound format with a chat template."""

    question: ClassVar[str] = "问：{{ messages[0]['content'] }}\n答："

    def chat_template(self, tokenizer: Any) -> str:
        return (
            "{%- if messages | map(attribute='role') | list not in [['user'], ['user', 'assistant']] -%}"
            "{{- raise_exception('one question and one answer') -}}{%- endif -%}"
            f"<s>{self.question}{{{{ messages[1]['content'] ~ '</s>' if messages[1] }}}}"
        )


def test_a_sound_chat_template_passes() -> None:
    tested = contract(PromptContract, Templated)
    for answer in ("三天", "\n三天", "三天 ", "CT"):
        tested.test_chat_template_asks_alike(answer)
        tested.test_chat_template_answers_alike(answer)
    tested.test_chat_template_refuses_alike(("user", "user"))


def test_a_chat_template_that_lays_out_otherwise() -> None:
    @dataclass(kw_only=True)
    class Spaced(Templated):
        question: ClassVar[str] = "问： {{ messages[0]['content'] }}\n答："

    tested = contract(PromptContract, Spaced)
    fails(tested.test_chat_template_asks_alike, "三天", match="the template lays out")
    fails(tested.test_chat_template_answers_alike, " 三天", match="the template lays out")


def test_a_chat_template_that_takes_what_the_format_refuses() -> None:
    @dataclass(kw_only=True)
    class Lenient(Templated):
        def chat_template(self, tokenizer: Any) -> str:
            return "{% for message in messages %}{{ message['content'] }}{% endfor %}"

    fails(contract(PromptContract, Lenient).test_chat_template_refuses_alike, ("user", "user"))


def test_a_name_that_nobody_offers() -> None:
    fails(contract(PromptContract, "chatmedd").test_is_found_in_the_catalog, match="no installed plugin offers")


def test_no_dataclass_no_meaning_no_docstring() -> None:
    class Bare(Plain):
        pass

    @dataclass(kw_only=True)
    class Mute(Plain):
        length: int = 3

    fails(contract(PromptContract, Bare).test_is_a_component, match="dataclass")
    fails(contract(PromptContract, Mute).test_fields_have_a_meaning, match="length")
    fails(contract(PromptContract, Mute).test_says_what_it_is, match="no docstring")


def test_a_field_in_the_place_of_a_method() -> None:
    @dataclass(kw_only=True)
    class Hiding(Plain):
        render: int = 3  # type: ignore[assignment]

    fails(contract(PromptContract, Hiding).test_fields_leave_the_contract_alone, match="render")


def test_a_heavy_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "heavy_format.py").write_text("import torch\n")
    monkeypatch.syspath_prepend(tmp_path)

    @dataclass(kw_only=True)
    class Heavy(Plain):
        pass

    Heavy.__module__ = "heavy_format"
    fails(contract(PromptContract, Heavy).test_module_imports_nothing_heavy, match="imports torch")


@dataclass(kw_only=True)
class Rows(DatasetSource):
    """A sound data set, that each of the others breaks."""

    def sample(self, row: Row) -> Sample:
        return Sample((Turn("user", row.text("ask")), Turn("assistant", row.text("reply"))), row.where)


GOOD: list[Any] = [{"ask": "胃疼怎么办？", "reply": "请先做胃镜。"}]


def test_a_sound_data_set_passes(tmp_path: Path) -> None:
    tested = contract(DatasetContract, Rows, rows=GOOD, bad_rows=[{"ask": "胃疼"}])
    tested.test_good_rows_become_samples(tmp_path)
    tested.test_bad_rows_become_values(tmp_path)
    tested.test_a_broken_field_is_named(tmp_path)
    tested.test_rows_know_their_place(tmp_path)
    tested.test_fingerprint_follows_the_content(tmp_path)
    fails(tested.test_says_where_it_comes_from, match="licence")


def test_a_key_error(tmp_path: Path) -> None:
    @dataclass(kw_only=True)
    class Raising(Rows):
        def sample(self, row: Row) -> Sample:
            return Sample((Turn("user", row.value["ask"]), Turn("assistant", row.value["reply"])), row.where)

    tested = contract(DatasetContract, Raising, rows=GOOD, bad_rows=[{"ask": "胃疼"}])
    fails(tested.test_bad_rows_become_values, tmp_path, match="KeyError")
    fails(tested.test_a_broken_field_is_named, tmp_path, match="KeyError")
    fails(tested.test_strange_rows_raise_nothing, 7, tmp_path, match="TypeError")


def test_a_missing_field_read_as_empty(tmp_path: Path) -> None:
    @dataclass(kw_only=True)
    class Lenient(Rows):
        def sample(self, row: Row) -> Sample:
            answer = row.value.get("reply", "")
            return Sample((Turn("user", row.text("ask")), Turn("assistant", answer)), row.where)

    fails(contract(DatasetContract, Lenient, rows=GOOD).test_a_broken_field_is_named, tmp_path, match="is missing")


def test_a_row_lost_in_silence(tmp_path: Path) -> None:
    @dataclass(kw_only=True)
    class Losing(Rows):
        def __iter__(self) -> Any:
            return (item for item in super().__iter__() if item.where.line != 1)

    tested = contract(DatasetContract, Losing, rows=[*GOOD, *GOOD])
    fails(tested.test_good_rows_become_samples, tmp_path, match="lost in silence")


def test_another_order_each_time(tmp_path: Path) -> None:
    @dataclass(kw_only=True)
    class Shuffled(Rows):
        def __iter__(self) -> Any:
            items = list(super().__iter__())
            return iter(random.sample(items, len(items)))

    rows = [{"ask": str(number), "reply": "三天"} for number in range(50)]
    fails(contract(DatasetContract, Shuffled, rows=rows).test_reads_the_same_twice, tmp_path)


def llama() -> type[Any]:
    return catalog().find("backbone", "llama").load()


def test_adapters_left_out(tmp_path: Path) -> None:
    @dataclass(kw_only=True)
    class Deaf(llama()):  # type: ignore[misc]
        def load_model(self) -> Any:
            return replace(self, adapters=[]).read_plain()

        def read_plain(self) -> Any:
            from transformers import LlamaForCausalLM

            return LlamaForCausalLM.from_pretrained(self.directory(), dtype="float32")

    fails(contract(BackboneContract, Deaf).test_adapters_are_honoured, tmp_path, match="peft's own merge")


def test_a_pad_token_that_ends(tmp_path: Path) -> None:
    @dataclass(kw_only=True)
    class Ending(llama()):  # type: ignore[misc]
        def load_tokenizer(self) -> Any:
            tokenizer = super().load_tokenizer()
            tokenizer.pad_token = tokenizer.eos_token
            return tokenizer

    fails(contract(BackboneContract, Ending).test_tokenizer_pads_and_ends, match="end token is trained")


def test_a_tiny_model_of_another_kind_each_time(tmp_path: Path) -> None:
    @dataclass(kw_only=True)
    class Drifting(llama()):  # type: ignore[misc]
        def make_tiny_weights(self, directory: Path) -> None:
            super().make_tiny_weights(directory)
            (directory / "noise.bin").write_bytes(random.randbytes(8))

    tested = contract(BackboneContract, Drifting)
    fails(tested.test_tiny_model_is_the_same_everywhere, tmp_path, match="noise.bin differ")


def test_lora_targets_of_another_model() -> None:
    @dataclass(kw_only=True)
    class Elsewhere(llama()):  # type: ignore[misc]
        lora_targets: ClassVar[tuple[str, ...]] = ("query_key_value",)

    fails(contract(BackboneContract, Elsewhere).test_lora_targets_exist, match="query_key_value")


def test_packing_that_is_said_to_be_impossible() -> None:
    fails(contract(BackboneContract, llama(), packs=False).test_packed_samples_are_isolated, match="are kept apart")


@dataclass(kw_only=True)
class Saving(Trainer):
    """Changes one weight a step and saves the model; each of the others breaks it."""

    max_steps: int = 4
    """Steps."""

    def fit(self, job: Job) -> None:
        import torch

        model: Any = job.load_model()
        first = int(job.resume.name.rpartition("-")[2]) if job.resume and self.reads_checkpoints() else 0
        head = model.lm_head.weight
        with torch.no_grad():
            if first:
                assert job.resume is not None
                head.copy_(torch.load(job.resume / "head.pt", weights_only=True))
            for step in range(first + 1, self.max_steps + 1):
                head[step] += self.change()
                job.log(step, self.max_steps, {"loss": 1.0})
                with job.saving(f"checkpoints/checkpoint-{step}") as folder:
                    torch.save(head.clone(), folder / "head.pt")
        with job.saving("model") as folder:
            model.save_pretrained(folder)
            job.tokenizer.save_pretrained(folder)
        job.finish(model)

    def steps(self, train: Any, world: int = 1) -> int | None:
        return self.max_steps

    def change(self) -> float:
        return 0.1

    def reads_checkpoints(self) -> bool:
        return True


def test_a_sound_trainer_passes(tmp_path_factory: pytest.TempPathFactory) -> None:
    tested = contract(TrainerContract, Saving)
    tested.test_the_run_is_proven(tmp_path_factory)
    tested.test_the_model_has_learnt(tmp_path_factory)
    tested.test_the_tokenizer_is_the_same(tmp_path_factory)
    tested.test_metrics_are_logged(tmp_path_factory)
    tested.test_an_interrupted_run_comes_to_the_same_end(tmp_path_factory)


def test_a_trainer_that_learns_nothing(tmp_path_factory: pytest.TempPathFactory) -> None:
    @dataclass(kw_only=True)
    class Idle(Saving):
        def change(self) -> float:
            return 0.0

    fails(contract(TrainerContract, Idle).test_the_model_has_learnt, tmp_path_factory, match="no weight has changed")


def test_a_trainer_that_begins_anew(tmp_path_factory: pytest.TempPathFactory) -> None:
    @dataclass(kw_only=True)
    class Forgetful(Saving):
        def reads_checkpoints(self) -> bool:
            return False

    tested = contract(TrainerContract, Forgetful)
    fails(tested.test_an_interrupted_run_comes_to_the_same_end, tmp_path_factory, match="is not gone on from")
