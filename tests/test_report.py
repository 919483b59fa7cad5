"""The report of a run shows what the run recorded, whatever state that is in, and needs nothing but itself."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import RECIPE, Medframe

from medframe.compose import compose
from medframe.recipe import build
from medframe.report.charts import lines
from medframe.run import run as train

LONG = "头" * 90 + "痛怎么办"
ROWS: list[object] = [
    *(
        {"query": f"孩子咳嗽第{i}天了，要不要拍片子？", "response": f"先听诊；超过{i + 7}天不好再拍。"}
        for i in range(12)
    ),
    {"query": LONG, "response": "多休息。"},
    {"query": LONG + "呢", "response": "少看手机。"},
    {"query": "孩子咳嗽第3天了，要不要拍片子？", "response": "先听诊；超过10天不好再拍。"},
    {"query": "李四的病历", "response": ["甲状腺"]},
    {"query": "头痛", "response": ""},
]
SETTINGS = [
    "limits={max_length: 80, on_overflow: cut, on_bad_row: skip}",
    "held_out={rows: 3}",
    "compare=2",
    "trainer={max_steps: 6, logging_steps: 1, eval_steps: 3, save_steps: 6, learning_rate: 0.02}",
]
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """A report, read as a browser would: its elements, its text, and what it would fetch."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.source = file.read_text("utf-8")
        self.words: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(self.source)
        self.close()
        assert not self._open, f"left open: {self._open}"
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] not in (["script"], ["style"]):
            self.words.append(data)

    def charts(self) -> dict[str, list[dict[str, Any]]]:
        """Title -> its lines: name, color, points."""
        found = [json.loads(a["data-lines"] or "") for tag, a in self.elements if a.get("class") == "chart"]
        titles = re.findall(r"<figcaption><h3>(.*?)</h3>", self.source)
        return dict(zip(titles, found, strict=True))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """Two runs, the second at another rate and begun anew where a run lay; nothing of them is to be changed."""
    folder = tmp_path_factory.mktemp("report")
    rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    (folder / "consultations.jsonl").write_text(rows, "utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, "utf-8")
    first, second = folder / "first", folder / "second"
    settings = [*SETTINGS, f"out={first}"]
    train(build(compose(folder / "recipe.yaml", settings)), say=lambda line: None)
    shutil.copytree(first, second)
    (second / "report.html").write_text("what is there is a run, and a report of it", "utf-8")
    settings += [f"out={second}", "trainer.learning_rate=0.001", "trainer.max_steps=4"]
    train(build(compose(folder / "recipe.yaml", settings)), say=lambda line: None, overwrite=True)
    return first, second


@pytest.fixture
def run(trained: tuple[Path, ...], here: Path) -> Path:
    """The first run, to be tampered with; the working directory is the test's own."""
    return Path(shutil.copytree(trained[0], here / "run", ignore=shutil.ignore_patterns("checkpoints", "adapter")))


@pytest.fixture
def reported(medframe: Medframe, run: Path) -> Callable[..., Page]:
    """Writes the report of the run, or of the runs given, and reads it."""

    def call(*runs: object) -> Page:
        ended = medframe("report", *(runs or [run]))
        assert ended.code == 0, ended.err
        return Page(Path(ended.out.strip()))

    return call


def edit(file: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(file.read_text("utf-8"))
    change(content)
    file.write_text(json.dumps(content), "utf-8")


def logged(run: Path, name: str) -> list[tuple[int, float]]:
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [(entry["step"], entry[name]) for entry in entries if name in entry]


# ---- one run


def test_the_page_lies_in_the_run_and_begins_with_the_outcome(
    medframe: Medframe, run: Path, reported: Callable[..., Page]
) -> None:
    assert medframe("report", run).out == f"{run / 'report.html'}\n"
    page = reported()
    losses = logged(run, "held_out_loss")
    assert f"Held-out loss {losses[0][1]:.3f} → {losses[-1][1]:.3f}" in page.text
    assert "Optimizer steps 6" in page.text
    assert page.text.index("Held-out loss") < page.text.index("Curves") < page.text.index("What this run is")


def test_the_page_needs_nothing_but_itself(run: Path, reported: Callable[..., Page]) -> None:
    page = reported()
    fetched = [
        a[name] or ""
        for _, a in page.elements
        for name in ("src", "href", "srcset", "data", "poster", "action")
        if name in a
    ]
    assert [name[:5] for name in fetched] == ["data:"]  # its icon
    (style,) = re.findall(r"<style>(.*?)</style>", page.source, re.S)
    (script,) = re.findall(r"<script>(.*?)</script>", page.source, re.S)
    assert not re.search(r"url\(|@import|@font-face", style)
    assert not re.search(r"fetch\(|XMLHttpRequest|import |https?:", script)
    (policy,) = [a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in str(policy)
    assert "unsafe" not in str(policy)


def test_the_curves_are_what_was_logged(run: Path, reported: Callable[..., Page]) -> None:
    charts = reported().charts()
    training, held_out = charts["Loss"]
    for line, name in ((training, "loss"), (held_out, "held_out_loss")):
        assert [step for _, step, _ in line["p"]] == [str(step) for step, _ in logged(run, name)]
        assert [float(said) for *_, said in line["p"]] == pytest.approx([v for _, v in logged(run, name)], rel=1e-3)
    assert [at for at, *_ in held_out["p"]] == [0, 500, 1000]
    ((_, first, _), *_) = charts["Learning rate"][0]["p"]
    assert first == "1"
    assert len(charts["Throughput"][0]["p"]) == len(charts["Gradient norm"][0]["p"]) == 6


def test_rows_are_told_by_source_with_reasons_and_places(run: Path, reported: Callable[..., Page]) -> None:
    page = reported()
    told = re.search(r"lost consult ([\d, ]+)", page.text)
    assert told
    (ledger,) = json.loads((run / "ledger.json").read_text("utf-8"))["sources"]
    assert told[1].split()[:5] == ["17", "13", "2", "2", "1"]
    assert told[1].split()[6:] == [f"{ledger[name]:,}" for name in ("tokens", "supervised", "lost")]
    assert "skipped 1 field 'response' must be text, it is a list consultations.jsonl:16" in page.text
    assert "skipped 1 no answer consultations.jsonl:17" in page.text
    assert "shortened 2 … characters cut from the start of the question" in page.text
    assert "consultations.jsonl:13 consultations.jsonl:14" in page.text
    assert "kept 1 repeats an earlier row consultations.jsonl:15" in page.text
    assert "Many rows are skipped: 12 % of consult." in page.text


def test_the_histogram_counts_every_training_example(run: Path, reported: Callable[..., Page]) -> None:
    recorded = json.loads((run / "ledger.json").read_text("utf-8"))
    training = recorded["training"]
    (ledger,) = recorded["sources"]
    assert training["examples"] == ledger["examples"] - 3
    assert training["tokens"] < ledger["tokens"]
    assert training["longest"] == 80
    assert sum(training["sources"]["consult"].values()) == training["examples"]
    assert training["sources"]["consult"]["80"] == 2
    page = reported()
    ((bars),) = page.charts()["Length of the training examples"]
    assert sum(int(said) for *_, said in bars["p"]) == training["examples"]
    assert len([1 for tag, a in page.elements if tag == "rect" and "height" in a and "x" in a and "y" in a]) <= 48
    assert f"Training tokens {training['tokens']:,} {training['supervised']:,} supervised" in page.text


def test_a_long_tail_does_not_squeeze_the_histogram(run: Path, reported: Callable[..., Page]) -> None:
    def stretch(ledger: Any) -> None:
        counts = {str(64 * n): 500 for n in range(10)} | {"16000": 3}
        ledger["training"] |= {"sources": {"consult": counts}, "examples": 5003, "longest": 16010, "width": 64}

    edit(run / "ledger.json", stretch)
    page = reported()
    (bars,) = page.charts()["Length of the training examples"]
    assert [said for *_, said in bars["p"]] == ["500"] * 9 + ["503"]
    assert "the last bar also holds 3 longer ones" in page.text


def test_answers_before_and_after_stand_beside_what_was_expected(run: Path, reported: Callable[..., Page]) -> None:
    rows = json.loads((run / "comparison.json").read_text("utf-8"))
    assert len(rows) == 2
    page = reported()
    for row in rows:
        assert " ".join(row["prompt"].split()) in page.text
        assert row["expected"] in page.text
    assert page.text.count("expected") >= 2


def test_the_page_says_what_the_run_is(run: Path, reported: Callable[..., Page]) -> None:
    manifest = json.loads((run / "manifest.json").read_text("utf-8"))
    text = reported().text
    for part in (
        manifest["base"]["fingerprint"],
        manifest["tokenizer"],
        manifest["prompt"]["fingerprint"],
        manifest["data"][0]["content"],
        manifest["trained"],
        manifest["machine"],
        f"torch {manifest['libraries']['torch']}",
        "skew: none",
        "max_length 80, on_overflow cut",
        "use lora, max_steps 6",
        "used: packed",
        "knows no medicine",
    ):
        assert part in text
    edit(run / "manifest.json", lambda m: m["prompt"].update(skew="one space more"))
    assert "reproduces a published skew between training and chat: one space more" in reported().text


def test_a_held_out_loss_that_rises_again_is_pointed_out(run: Path, reported: Callable[..., Page]) -> None:
    assert "fits the training examples alone" not in reported().text
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 7, "held_out_loss": 99}\n')
    best = logged(run, "held_out_loss")[-2]
    assert f"The held-out loss was lowest at step {best[0]}, {best[1]:.3f}, and is 99" in reported().text


# ---- runs in any state


def test_a_run_that_has_not_finished_is_shown_as_far_as_it_got(run: Path, reported: Callable[..., Page]) -> None:
    edit(run / "manifest.json", lambda m: [m.pop(name) for name in ("result", "trained", "batching")])
    edit(run / "manifest.json", lambda m: m.update(state="training"))
    for name in ("comparison.json", "README.md"):
        (run / name).unlink()
    kept = (run / "metrics.jsonl").read_text("utf-8").splitlines(keepends=True)[:6]
    (run / "metrics.jsonl").write_text("".join(kept)[:-20], "utf-8")
    page = reported()
    last = json.loads(kept[4])["step"]
    assert f"The run has not finished: the last step logged is {last} of 6." in page.text
    assert "1 of 6 lines of metrics.jsonl cannot be read" in page.text
    assert "No answers were compared yet." in page.text
    assert "missing" not in page.text


@pytest.mark.parametrize(
    "content", [None, "", "\n", '{"step": 1, "lo', "\x00\xff[]\n3\n{}\n", '{"step": "1", "loss": 2}\n'], ids=repr
)
def test_a_run_without_metrics_has_a_report(run: Path, reported: Callable[..., Page], content: str | None) -> None:
    if content is None:
        (run / "metrics.jsonl").unlink()
    else:
        (run / "metrics.jsonl").write_bytes(content.encode("latin-1"))
    page = reported()
    assert "No loss was logged." in page.text
    assert "Nothing was logged" in page.text
    before, after = json.loads((run / "manifest.json").read_text("utf-8"))["result"]["held_out_loss"]
    assert f"Held-out loss {before:.3f} → {after:.3f}" in page.text
    assert list(page.charts()) == ["Length of the training examples"]


def test_values_that_are_not_finite_are_counted_and_left_out(run: Path, reported: Callable[..., Page]) -> None:
    huge = "9" * 400
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write(f'{{"step": 7, "loss": NaN, "grad_norm": 1e999, "learning_rate": {huge}}}\n')
        stream.write('{"step": 8, "loss": -Infinity, "note": "text", "flag": true}\n')
    page = reported()
    for told in ("loss: 2 values are", "grad_norm: 1 value is", "learning_rate: 1 value is"):
        assert f"{told} not finite" in page.text
    assert "flag" not in page.charts()
    tiny = [json.dumps({"step": n, "loss": 5e-324 * (n + 1), "learning_rate": 1e-320}) for n in range(3)]
    (run / "metrics.jsonl").write_text("\n".join([*tiny, '{"step": 4, "loss": 2}']), "utf-8")
    assert [said for *_, said in reported().charts()["Loss"][0]["p"]] == ["0", "0", "0", "2"]
    drawn = "".join(a.get("d") or a.get("data-lines") or "" for _, a in page.elements)
    assert not re.search(r"nan|inf", drawn)


def test_a_run_without_held_out_rows_or_compared_answers(run: Path, reported: Callable[..., Page]) -> None:
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    kept = [json.dumps(entry) for entry in entries if "held_out_loss" not in entry]
    (run / "metrics.jsonl").write_text("\n".join(kept) + "\n", "utf-8")
    edit(run / "manifest.json", lambda m: m["result"].update(held_out_loss=None))
    edit(run / "ledger.json", lambda ledger: ledger["held_out"].clear())
    (run / "comparison.json").write_text("[]\n", "utf-8")
    page = reported()
    assert f"Training loss {logged(run, 'loss')[-1][1]:.3f}" in page.text
    assert "No rows were held out" in page.text
    assert "No answers were compared." in page.text


def test_whatever_else_a_trainer_logs_is_drawn_under_its_name(run: Path, reported: Callable[..., Page]) -> None:
    steps = [json.dumps({"step": n * 5, "reward/mean": -0.5 * n, "kl": 1e-7}) for n in range(4)]
    (run / "metrics.jsonl").write_text("\n".join(steps), "utf-8")
    charts = reported().charts()
    assert [said for *_, said in charts["reward/mean"][0]["p"]] == ["0", "-0.5", "-1", "-1.500"]
    assert [step for _, step, _ in charts["kl"][0]["p"]] == ["0", "5", "10", "15"]
    assert "Loss" not in charts


def test_a_run_of_an_earlier_version_says_what_was_not_recorded(run: Path, reported: Callable[..., Page]) -> None:
    edit(run / "ledger.json", lambda ledger: ledger.pop("training"))
    page = reported()
    assert "The lengths of the training examples were not recorded." in page.text
    assert "Length of the training examples" not in page.charts()


@pytest.mark.parametrize("name", ["recipe.yaml", "ledger.json", "comparison.json"])
@pytest.mark.parametrize("content", [None, "", "[[3]]", '{"sources": [{"rows": "many"}]}', "{", '[{"prompt": 3}]'])
def test_a_file_that_is_lost_or_broken_is_named(
    run: Path, reported: Callable[..., Page], name: str, content: str | None
) -> None:
    if content is None:
        (run / name).unlink()
    else:
        (run / name).write_text(content, "utf-8")
    text = reported().text
    is_mapping = name == "recipe.yaml" and content == '{"sources": [{"rows": "many"}]}'
    assert (f"{name} is missing" in text) == (content is None)
    assert (f"{name} is not what a run writes" in text) == (content is not None and not is_mapping)
    assert "Curves" in text


@pytest.mark.parametrize("training", [{"sources": {}}, {"sources": {"consult": {}}}, {"width": 0}, {"examples": -1}])
def test_lengths_that_no_run_writes_are_left_out_with_all_of_the_ledger(
    run: Path, reported: Callable[..., Page], training: dict[str, Any]
) -> None:
    edit(run / "ledger.json", lambda ledger: ledger["training"].update(training))
    text = reported().text
    assert "ledger.json is not what a run writes, and is left out." in text
    assert "The account of the rows cannot be read." in text


@pytest.mark.parametrize(
    "broken", [{"data": 3, "result": [], "prompt": "x", "hub": 1, "libraries": None}, {"base": "x"}]
)
def test_a_manifest_with_strange_values_is_no_reason_to_stumble(
    run: Path, reported: Callable[..., Page], broken: dict[str, Any]
) -> None:
    edit(run / "manifest.json", lambda m: m.update(broken))
    assert "Curves" in reported().text
    assert "Curves" in reported(run, shutil.copytree(run, run.parent / "twin")).text


def test_a_hundred_thousand_lines_make_a_small_page_that_keeps_the_peaks(
    run: Path, reported: Callable[..., Page]
) -> None:
    with (run / "metrics.jsonl").open("w") as stream:
        for step in range(1, 100_001):
            loss = 77.25 if step == 51_234 else 1 + 1 / step
            rest = '"grad_norm": 0.5, "learning_rate": 1e-4, "supervised_tokens_per_second": 900.5}'
            stream.write(f'{{"step": {step}, "loss": {loss}, {rest}\n')
    page = reported()
    assert len(page.source.encode()) < 500_000
    assert "a point is the mean of up to 417" in page.text
    (training,) = page.charts()["Loss"]
    assert len(training["p"]) <= 240
    (peak,) = [said for *_, said in training["p"] if "77.25" in said]
    assert peak.endswith("(1.000 to 77.25)") or peak.endswith("(1 to 77.25)")


# ---- what comes from elsewhere

EVIL = '"><script>alert(1)</script><img src=x onerror=alert(1)></title></style>'


def test_text_from_elsewhere_stays_text(
    medframe: Medframe, run: Path, here: Path, reported: Callable[..., Page]
) -> None:
    strange = f"{EVIL}\x00\x1b[31m\x7f\x85\u202e\ud800\uffff"
    answer = {"prompt": strange, "expected": "好", "before": "休" * 9000, "after": "\r\n\tb"}
    (run / "comparison.json").write_text(json.dumps([answer]), "utf-8")
    edit(run / "manifest.json", lambda m: m.update(machine=strange, profile=strange))
    edit(run / "manifest.json", lambda m: m["data"][0].update(homepage="javascript:alert(1)"))
    edit(run / "ledger.json", lambda ledger: ledger["sources"][0].update(source=strange))
    edit(run / "ledger.json", lambda ledger: ledger["sources"][0]["entries"][0].update(why=strange, file=strange))
    edit(run / "ledger.json", lambda ledger: ledger["training"].update(sources={strange: {"3": 1}, "b": {"3": 2}}))
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps({"step": 9, strange: 1.0}) + "\n")
    evil = run.rename(here / EVIL.replace("/", "∕"))
    other = shutil.copytree(evil, here / "other")
    for page in (reported(evil), reported(evil, other)):
        assert [tag for tag, _ in page.elements if tag in ("script", "img", "style", "title")].count("script") == 1
        assert not [a for _, a in page.elements if any(name.startswith("on") for name in a)]
        assert EVIL in page.text
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", page.source)
        assert "␀␛[31m␡" in page.text
        assert "休… and" not in page.text
        assert "and 7,000 more characters" in page.text


def test_a_row_that_a_reason_quotes_is_not_shown(run: Path, reported: Callable[..., Page]) -> None:
    def quote(ledger: Any) -> None:
        whys = [
            "role '患者王五咳血' is none of user",
            'turn 3, "王五", has no end',
            "no field '问题'; the row's fields: 'query', 'a'",
        ]
        for entry, why in zip(ledger["sources"][0]["entries"], whys, strict=False):
            entry["why"] = why

    edit(run / "ledger.json", quote)
    page = reported()
    assert "王五" not in page.source
    assert "role '…' is none of user" in page.text
    assert "no field '问题'; the row's fields: 'query', 'a'" in page.text


def test_many_reasons_and_places_are_cut_short_and_said_so(run: Path, reported: Callable[..., Page]) -> None:
    def fill(ledger: Any) -> None:
        (source,) = ledger["sources"]
        like = source["entries"][0]
        words = "abcdefghijklmnopqrst"
        source["entries"] = [
            {**like, "line": n + 1, "fate": "skipped", "why": f"wrong {words[min(n % 40, 19)]}, {n} of it"}
            for n in range(4000)
        ]
        source["rows"], source["kept"], source["shortened"], source["skipped"] = 4010, 10, 0, 4000

    edit(run / "ledger.json", fill)
    page = reported()
    assert "skipped 2,100 wrong t, … of it" in page.text
    assert "consultations.jsonl:20 consultations.jsonl:21" in page.text
    assert "and 2,096 more" in page.text
    assert "800 other reasons" in page.text


# ---- several


def test_runs_are_compared_in_what_differs(
    trained: tuple[Path, ...], here: Path, reported: Callable[..., Page]
) -> None:
    page = reported(*trained)
    assert (here / "report.html").exists()
    assert "2 runs compared" in page.text
    keys = re.findall(r'<tr><th scope="row">([\w.]+)</th><td>(.*?)</td><td>(.*?)</td></tr>', page.source)
    assert keys == [("trainer.max_steps", "6", "4"), ("trainer.learning_rate", "0.02", "0.001")]
    charts = page.charts()
    for title, name in (("Held-out loss", "held_out_loss"), ("Training loss", "loss")):
        for line, folder in zip(charts[title], trained, strict=True):
            assert line["n"] == folder.name
            assert [step for _, step, _ in line["p"]] == [str(step) for step, _ in logged(folder, name)]
    assert charts["Held-out loss"][1]["p"][-1][0] == 667  # step 4 of 6
    assert [line["n"] for line in charts["Length of the training examples"]] == ["every run"]
    (row,) = json.loads((trained[0] / "comparison.json").read_text("utf-8"))[:1]
    assert page.text.count(" ".join(row["prompt"].split())) == 1
    assert "cannot be compared" not in page.text


def test_losses_that_do_not_compare_are_told(
    trained: tuple[Path, ...], run: Path, reported: Callable[..., Page]
) -> None:
    edit(run / "ledger.json", lambda ledger: ledger["held_out"].pop())
    edit(run / "manifest.json", lambda m: m.update(tokenizer="other"))
    page = reported(trained[1], run)
    told = "cannot be compared as they stand: they hold out other rows; the tokenizers differ, and a loss is per token."
    assert told in page.text
    assert "tokenizer's fingerprint" in page.text
    assert 'class="best"' not in page.source
    assert 'class="best"' in reported(*trained).source


def test_runs_of_one_name_can_be_told_apart(run: Path, here: Path, reported: Callable[..., Page]) -> None:
    for name in ("a/x", "b/x", "chatmed-published-1", "chatmed-published-2"):
        shutil.copytree(run, here / name)
    page = reported("a/x", "b/x")
    assert [line["n"] for line in page.charts()["Held-out loss"]] == ["a/x", "b/x"]
    page = reported("chatmed-published-1", "chatmed-published-2")
    assert [line["n"] for line in page.charts()["Held-out loss"]] == ["…1", "…2"]
    assert "Nothing: the same recipe" in page.text


# ---- where it is written


def test_wrong_input_is_told_and_nothing_is_written(medframe: Medframe, run: Path, here: Path) -> None:
    (here / "empty").mkdir()
    (here / "broken").mkdir()
    (here / "broken" / "manifest.json").write_text("{", "utf-8")
    ended = medframe("report", run, "empty", "broken", "nowhere")
    assert ended.code == 2
    assert ended.err.count("Error: ") == 3
    assert "nowhere is no directory; give" in ended.err
    assert "broken/manifest.json is broken" in ended.err
    assert not list(here.rglob("*.html"))
    assert medframe("report").code == 2
    assert "there is no folder" in medframe("report", run, "--out", "no/where.html").err
    assert medframe("report", run, "--out", here).code == 2


def test_only_a_report_is_written_over(medframe: Medframe, run: Path, here: Path) -> None:
    mine = here / "mine.html"
    mine.write_text("<p>mine", "utf-8")
    ended = medframe("report", run, "--out", mine)
    assert ended.code == 2
    assert "mine.html is there and is no report" in ended.err
    assert mine.read_text("utf-8") == "<p>mine"
    for _ in range(2):
        assert medframe("report", run, run, "--out", "one.html").out == "one.html\n"
    assert "runs compared" not in (here / "one.html").read_text("utf-8")
    assert not (run / "report.html").exists()


def test_a_run_that_begins_anew_takes_the_report_of_the_old_one_away(trained: tuple[Path, ...]) -> None:
    assert not (trained[1] / "report.html").exists()


# ---- drawing


@pytest.mark.parametrize(
    "values",
    [
        [2.5],
        [0.0, 0.0],
        [-3.0, -3.0],
        [1e-5, 2e-4, 1e-4],
        [8.4, 0.016, 0.5],
        [1e-9, 1e9],
        [-1e6, 12.0],
        [0.1 + 0.2, 0.3],
        [99_999_999.0, 100_000_001.0],
        [1.0, 1.0 + 1e-7],
    ],
)
def test_every_scale_holds_its_values_between_ticks_that_say_where_they_are(values: list[float]) -> None:
    chart = lines("", "", [("a", 0, list(enumerate(values)))], len(values) - 1, may_be_log=True)
    assert all(0 <= y <= 1000 for _, y, _ in chart.lines[0].dots)
    texts = [text for _, text in chart.down]
    assert len(texts) >= 2
    assert len(set(texts)) == len(texts)
    said = [float(text.replace(",", "").replace("k", "e3")) for text in texts]
    assert said == sorted(said)
    assert all(above > below for below, above in pairwise([-at for at, _ in chart.down]))
    assert chart.down[0][0] == pytest.approx(1000)
    assert chart.down[-1][0] == pytest.approx(0)


def test_labels_do_not_lie_on_each_other() -> None:
    named = [(f"run {n}", n, [(0, 5.0), (10, 1.0 + n / 1000)]) for n in range(30)]
    chart = lines("", "", named, 10, height=170)
    places = sorted(line.label_at for line in chart.lines if line.label_at is not None)
    assert len(places) == 13
    assert all(after - before >= 13.9 for before, after in pairwise(places))
    assert -1 <= places[0] <= places[-1] <= 171
    assert chart.notes == ["17 lines have no label for want of room"]


# ---- in a browser

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MEASURE = """<script>
addEventListener("error", (event) => told.errors.push(event.message));
const told = {errors: []};
for (const each of document.querySelectorAll("details")) each.open = true;
const plot = document.querySelector(".plot"), box = plot.getBoundingClientRect();
plot.dispatchEvent(new PointerEvent("pointermove", {clientX: box.right, clientY: box.top + 5}));
told.said = document.querySelector("output").innerText;
told.wide = document.documentElement.scrollWidth, told.room = document.documentElement.clientWidth;
parent.postMessage(JSON.stringify(told), "*");
</script></body>"""


def browsed(page: Path) -> tuple[str, str]:
    """The document as the browser has it in the end, and what it complained of."""
    line = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000"]
    line += ["--enable-logging=stderr", f"--user-data-dir={page.parent / 'profile'}", "--dump-dom", page.as_uri()]
    ended = subprocess.run(line, capture_output=True, text=True, timeout=120, env={**os.environ, "LANG": "C.UTF-8"})
    return ended.stdout, "\n".join(line for line in ended.stderr.splitlines() if "CONSOLE" in line)


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
def test_a_browser_shows_the_page_without_complaint_at_any_width(
    trained: tuple[Path, ...], here: Path, reported: Callable[..., Page]
) -> None:
    for name, page in (("one", reported()), ("two", reported(*trained))):
        whole = here / f"{name}.html"
        whole.write_text(page.source, "utf-8")
        shown, complaints = browsed(whole)
        assert complaints == ""
        assert 'tabindex="0"' in shown  # the script has run, under the page's own policy
        # Measured from within, for which the policy has to go; in a frame, since a window has a least width.
        bare = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.source)
        (here / f"{name}-measured.html").write_text(bare.replace("</body>", MEASURE), "utf-8")
        for width in (340, 1200):
            frame = here / f"{name}-{width}.html"
            listen = "<script>addEventListener('message', (event) => (document.title = event.data))</script>"
            frame.write_text(
                f"<title></title>{listen}<iframe src={name}-measured.html width={width} height=800>", "utf-8"
            )
            shown, _ = browsed(frame)
            title = re.search(r"<title>(.*?)</title>", shown, re.S)
            assert title
            told = json.loads(title[1])
            assert told["errors"] == []
            assert told["wide"] <= told["room"], width
            assert told["said"].startswith("step 6\n")


def test_the_recipe_is_there_to_be_copied(run: Path, reported: Callable[..., Page]) -> None:
    page = reported()
    (text,) = re.findall(r"<pre>(.*?)</pre>", page.source, re.S)
    assert yaml.safe_load(text) == yaml.safe_load((run / "recipe.yaml").read_text("utf-8"))
