"""The shipped recipe from its sample to an adapter that answers: it learns, it is bound, it is proven."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Ended, Medframe
from safetensors.torch import load_file, save_file

Chat = Callable[..., Ended]
ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "plugins/medframe_datasets/samples/chatmed_consult.jsonl"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The embedded profile as a user runs it: its run directory, and what was printed."""
    out = tmp_path_factory.mktemp("embedded") / "run"
    line = [sys.executable, "-m", "medframe", "run", str(ROOT / "recipes/chatmed.yaml"), f"out={out}"]
    # One thread: sure to be quick enough wherever the tests share their cores.
    result = subprocess.run(line, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    return out, result.stdout


@pytest.fixture
def copy(finished: tuple[Path, str], tmp_path: Path) -> Path:
    """The finished run, to be tampered with."""
    out = tmp_path / "run"
    shutil.copytree(finished[0], out, ignore=shutil.ignore_patterns("checkpoints"))
    return out


@pytest.fixture
def chat(medframe: Medframe, monkeypatch: pytest.MonkeyPatch) -> Chat:
    """The command in this process, with what is typed."""

    def call(out: Path, *options: object, typed: str = "头痛\n") -> Ended:
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        return medframe("chat", out, "--max-new-tokens", 100, *options)

    return call


def manifest(out: Path) -> dict[str, object]:
    loaded: dict[str, object] = json.loads((out / "manifest.json").read_text("utf-8"))
    return loaded


def learnt(out: Path) -> dict[str, str]:
    """The first row of the sample that was trained on."""
    held_out = {int(place.rpartition(":")[2]) for place in json.loads((out / "ledger.json").read_text())["held_out"]}
    rows = SAMPLE.read_text("utf-8").splitlines()
    row: dict[str, str] = next(json.loads(row) for line, row in enumerate(rows, 1) if line not in held_out)
    return row


def tiny_llama(folder: Path) -> Path:
    from medframe_backbones.llama import Llama

    folder.mkdir()
    Llama().make_tiny_tokenizer(folder)
    Llama().make_tiny_weights(folder)
    return folder


def test_the_embedded_profile_learns(finished: tuple[Path, str]) -> None:
    out, _ = finished
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    losses = [line["held_out_loss"] for line in lines if "held_out_loss" in line]
    assert losses[0] > 7
    assert losses[-1] < 0.2


def test_held_out_questions_are_answered_rightly(finished: tuple[Path, str]) -> None:
    from medframe.answer import Answerer
    from medframe.dataset import Turn
    from medframe.decoding import Decoding
    from medframe.trained import open_run

    out, _ = finished
    run = open_run(out)
    answerer = Answerer(run.model(), run.encoder)
    rows = SAMPLE.read_text("utf-8").splitlines()
    held_out = json.loads((out / "ledger.json").read_text("utf-8"))["held_out"]
    assert len(held_out) == 32
    right = 0
    for place in held_out[::2]:
        row = json.loads(rows[int(place.rpartition(":")[2]) - 1])
        said = answerer.answer([Turn("user", row["query"])], Decoding(max_new_tokens=128))
        right += all(row[name] in said for name in ("condition", "department", "advice"))
    assert right >= 12


def test_no_question_or_answer_of_the_sample_occurs_twice() -> None:
    rows = [json.loads(line) for line in SAMPLE.read_text("utf-8").splitlines()]
    assert len(rows) == 320
    assert len({row["query"] for row in rows}) == len(rows)
    assert len({row["response"] for row in rows}) == len(rows)
    assert len({row["condition"] for row in rows}) == 32


def test_the_run_ends_with_answers_before_and_after(finished: tuple[Path, str]) -> None:
    out, printed = finished
    assert "a proof of the pipeline, not of medicine" in printed
    compared = json.loads((out / "comparison.json").read_text("utf-8"))
    assert len(compared) == 5
    assert all(row["before"] != row["after"] for row in compared)
    assert f"medframe chat {out}" in printed


def test_the_run_directory_holds_what_it_says(finished: tuple[Path, str]) -> None:
    out, _ = finished
    names = {"recipe.yaml", "manifest.json", "ledger.json", "metrics.jsonl", "comparison.json", "README.md"}
    assert names | {"checkpoints", "adapter"} <= {file.name for file in out.iterdir()}
    assert manifest(out)["state"] == "finished"
    assert manifest(out)["batching"] == {"kind": "packed", "reason": None}
    assert not list(out.rglob("*.saving"))
    assert "320 rows, 320 kept" in (out / "README.md").read_text("utf-8")


def test_the_recipe_in_the_run_directory_runs_again(finished: tuple[Path, str], medframe: Medframe) -> None:
    out, _ = finished
    again = medframe("run", out / "recipe.yaml", "--print")
    assert again.code == 0, again.err
    assert again.out.splitlines() == (out / "recipe.yaml").read_text("utf-8").splitlines()[1:]


def test_the_adapter_loads_with_plain_peft_and_its_tokenizer_with_plain_transformers(
    finished: tuple[Path, str],
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from medframe.fingerprint import tokenizer_fingerprint

    out, _ = finished
    config = json.loads((out / "adapter" / "adapter_config.json").read_text("utf-8"))
    base = AutoModelForCausalLM.from_pretrained(config["base_model_name_or_path"])
    model = PeftModel.from_pretrained(base, str(out / "adapter"))
    tokenizer = AutoTokenizer.from_pretrained(out / "adapter")
    assert tokenizer_fingerprint(tokenizer) == manifest(out)["tokenizer"]
    # legacy=True has survived: what follows a special token begins with the dummy prefix.
    assert tokenizer.convert_ids_to_tokens(tokenizer("<s>问", add_special_tokens=False).input_ids) == ["<s>", "▁", "问"]
    row = learnt(out)
    inputs = tokenizer(f"问：\n{row['query']}\n答：\n", return_tensors="pt")
    said = model.generate(**inputs, max_new_tokens=100, do_sample=False)
    assert row["condition"] in tokenizer.decode(said[0])


def test_chat_answers_and_says_that_this_format_has_no_turns(finished: tuple[Path, str], chat: Chat) -> None:
    row = learnt(finished[0])
    result = chat(finished[0], typed=f"{row['query']}\n/clear\n/exit\n")
    assert result.code == 0, result.err
    assert row["condition"] in result.out
    assert "This format has no turns" in result.out
    assert "(forgotten)" in result.out


def test_chat_refuses_a_base_model_with_one_perturbed_tensor(chat: Chat, copy: Path, tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    assert chat(copy, "--base", base).code == 0
    tensors = load_file(base / "model.safetensors")
    name = "model.layers.2.mlp.up_proj.weight"
    tensors[name].view(-1)[1234] += 1e-3
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    result = chat(copy, "--base", base)
    assert result.code == 2
    assert name in result.err
    assert "expected fingerprint" in result.err
    assert "found" in result.err


def test_chat_refuses_another_tokenizer(chat: Chat, copy: Path) -> None:
    file = copy / "adapter" / "tokenizer.json"
    tokenizer = json.loads(file.read_text("utf-8"))
    vocab = tokenizer["model"]["vocab"]
    vocab["头"], vocab["痛"] = vocab["痛"], vocab["头"]
    file.write_text(json.dumps(tokenizer, ensure_ascii=False), "utf-8")
    result = chat(copy)
    assert result.code == 2
    assert "the tokenizer is not the one" in result.err


def test_chat_refuses_another_prompt_format(chat: Chat, copy: Path) -> None:
    recipe = copy / "recipe.yaml"
    recipe.write_text(recipe.read_text("utf-8").replace("supervise: answer", "supervise: all"), "utf-8")
    result = chat(copy)
    assert result.code == 2
    assert "the prompt format 'chatmed'" in result.err


def test_chat_refuses_weights_that_the_run_did_not_leave(chat: Chat, copy: Path) -> None:
    file = copy / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    first = sorted(tensors)[0]
    save_file({**tensors, first: torch.zeros_like(tensors[first])}, file, metadata={"format": "pt"})
    result = chat(copy)
    assert result.code == 2
    assert "not those that the run left" in result.err


def test_the_order_in_which_peft_names_the_adapted_modules_means_nothing(chat: Chat, copy: Path) -> None:
    file = copy / "adapter" / "adapter_config.json"
    config = json.loads(file.read_text("utf-8"))
    config["target_modules"].reverse()
    file.write_text(json.dumps(config), "utf-8")
    assert chat(copy).code == 0


@pytest.mark.parametrize("broken", ["missing", "unfinished", "garbage", "no base"])
def test_chat_says_what_is_wrong_with_a_run_directory(chat: Chat, copy: Path, tmp_path: Path, broken: str) -> None:
    file, options = copy / "manifest.json", []
    if broken == "missing":
        file.unlink()
    elif broken == "unfinished":
        file.write_text(file.read_text("utf-8").replace('"finished"', '"training"'), "utf-8")
    elif broken == "garbage":
        file.write_text("{", "utf-8")
    else:
        options = ["--base", tmp_path / "nowhere"]
    result = chat(copy, *options)
    assert result.code == 2
    assert result.err.startswith("Error: ")


def test_the_published_profile_trains_on_real_rows_and_chat_answers(
    medframe: Medframe, chat: Chat, tmp_path: Path
) -> None:
    rows = ROOT.parent / "shared/data/chatmed/consult_query_response.jsonl"
    if not rows.exists():
        pytest.skip("the real rows are not here")
    base, out = tiny_llama(tmp_path / "llama"), tmp_path / "run"
    line = ["run", str(ROOT / "recipes/chatmed.yaml"), "profile=published"]
    line += [f"backbone.weights={base}", f"data.consult.path={rows}", f"out={out}", "trainer.max_steps=4"]
    # Steps of 128 micro-batches would take minutes on a test machine; the published number is in the recipe.
    result = medframe(*line, "trainer.gradient_accumulation_steps=2")
    assert result.code == 0, result.err
    assert chat(out).code == 0


def test_chat_says_when_a_question_is_too_long_for_the_model(finished: tuple[Path, str], chat: Chat) -> None:
    result = chat(finished[0], "--max-new-tokens", 5000, typed=f"{'头痛' * 1500}\n头痛\n")
    assert result.code == 0, result.err
    # An answer may be as long as the context, and the question has half of it.
    assert "tokens; there is room for 1024" in result.out


def test_chat_goes_on_after_bytes_that_are_no_text(finished: tuple[Path, str]) -> None:
    line = [sys.executable, "-m", "medframe", "chat", str(finished[0]), "--max-new-tokens", "8"]
    result = subprocess.run(line, input=b"\xff\xfe\n\xe5\xa4\xb4\xe7\x97\x9b\n", capture_output=True)
    assert result.returncode == 0, result.stderr.decode()
    assert result.stdout.count(b"> ") == 3
