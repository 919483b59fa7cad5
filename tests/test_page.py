"""The chat page in a real browser: what a person sees and does, by mouse, keyboard and telephone, in both languages."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import RECIPE, serving

import medframe
from medframe.compose import compose
from medframe.recipe import build
from medframe.run import run as train

sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect
expect.set_options(timeout=15_000)  # for a busy machine
Page = Any
Visit = Callable[..., Page]

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
FOLDER = Path(medframe.__file__).parent / "serve" / "page"
ASKED = "**/v1/chat/completions"

# Instead of the server's answers those that the test sends, piece by piece: `asked` holds each request.
HELD = """
window.asked = [];
const real = window.fetch;
window.fetch = (path, options) => {
  if (!String(path).includes("chat/completions")) return real(path, options);
  let pipe;
  const one = { request: JSON.parse(options.body), aborted: false };
  const bytes = (text) => new TextEncoder().encode(text);
  one.event = (data) => pipe.enqueue(bytes(`data: ${JSON.stringify(data)}\\n\\n`));
  one.say = (content) => one.event({ choices: [{ index: 0, delta: { content }, finish_reason: null }] });
  one.end = (reason = "stop", tokens = 7) => {
    one.event({ choices: [{ index: 0, delta: {}, finish_reason: reason }] });
    one.event({ choices: [], usage: { prompt_tokens: 3, completion_tokens: tokens, total_tokens: 3 + tokens } });
    pipe.enqueue(bytes("data: [DONE]\\n\\n"));
    pipe.close();
  };
  one.hang_up = () => pipe.close();
  const body = new ReadableStream({ start: (controller) => (pipe = controller) });
  options.signal.addEventListener("abort", () => {
    one.aborted = true;
    pipe.error(new DOMException("left", "AbortError"));
  });
  window.asked.push(one);
  return Promise.resolve(new Response(body, { headers: { "Content-Type": "text/event-stream" } }));
};
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with a tuned model and its base, both of a format that holds one question."""
    folder = tmp_path_factory.mktemp("served")
    rows = [{"query": f"孩子咳嗽第{i}天了，要不要拍片子？", "response": "先听诊；不好再拍。" * 9} for i in range(8)]
    (folder / "consultations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, "utf-8")
    settings = [f"out={folder / 'run'}", "compare=0", "trainer.max_steps=2"]
    train(build(compose(folder / "recipe.yaml", settings)), say=lambda line: None)
    with serving(f"consult={folder / 'run'}", "--max-new-tokens", 120) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any, server: str) -> Iterator[Visit]:
    """Opens the page as a new person does; whatever goes wrong in its script, or against its policy, fails the test."""
    opened = []
    complaints: list[str] = []

    def heard(message: Any) -> None:
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            complaints.append(message.text)

    def call(*, held: bool = False, path: str = "", route: Callable[[Page], None] | None = None, **how: Any) -> Page:
        how = {"locale": "en-US", "viewport": {"width": 1100, "height": 760}, **how}
        context = browser.new_context(**how)
        opened.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("console", heard)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        if held:
            page.add_init_script(HELD)
        if route:
            route(page)
        page.goto(f"{server}/{path}")
        if not route:
            page.wait_for_selector("#model option:not([value=''])", state="attached")
        return page

    yield call
    for context in opened:
        context.close()
    assert complaints == []


def ask(page: Page, question: str, field: str = "#question") -> None:
    page.fill(field, question)
    page.press(field, "Enter")


def answers(page: Page, state: str = "") -> Any:
    return page.locator(f"#turns .answer[data-state='{state}']" if state else "#turns .answer")


def sent(page: Page, at: int = -1) -> Any:
    """The body of a request that the test holds."""
    # Waited for here: what playwright itself waits with is against the page's policy.
    return page.evaluate(
        """async (at) => {
          const late = performance.now() + 15000;
          while (!asked.at(at) && performance.now() < late) await new Promise((done) => setTimeout(done, 20));
          return asked.at(at).request;
        }""",
        at,
    )


def stream(*pieces: str, finish: str | None = "stop") -> str:
    """A whole answer as a server sends it."""
    chunks: list[Any] = [{"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in pieces]
    if finish:
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


def answering(page: Page, *pieces: str) -> None:
    """From here on the server answers so."""
    page.unroute(ASKED)
    page.route(ASKED, lambda route: route.fulfill(content_type="text/event-stream", body=stream(*pieces)))


def refusing(page: Page, status: int, message: str, code: str | None = None, **headers: str) -> None:
    """From here on the server refuses so."""
    body = {"error": {"message": message, "type": "error", "code": code}}
    page.unroute(ASKED)
    page.route(ASKED, lambda route: route.fulfill(status=status, json=body, headers=headers))


def several_turns(page: Page) -> None:
    """The models served are said to take conversations and a system turn."""

    def change(route: Any) -> None:
        models = route.fetch().json()
        for model in models["data"]:
            model["medframe"] |= {"format": "chat-template", "multi_turn": True, "system": "optional"}
        route.fulfill(json=models)

    page.route("**/v1/models", change)


# ---- asking


def test_an_answer_grows_before_the_eyes_and_is_there_after_a_reload(visit: Visit) -> None:
    page = visit()
    page.evaluate(
        """() => {
          window.lengths = new Set();
          const look = () => window.lengths.add(document.querySelector("#turns .prose")?.textContent.length);
          new MutationObserver(look).observe(document.getElementById("turns"), {subtree: true, childList: true});
        }"""
    )
    ask(page, "孩子咳嗽三天了，要不要拍片子？")
    expect(page.locator(".bubble")).to_have_text("孩子咳嗽三天了，要不要拍片子？")
    page.wait_for_selector("#turns .answer:is([data-state='done'], [data-state='length'])")
    assert len(page.evaluate("[...lengths]")) > 3
    expect(page.locator("#turns .numbers")).to_have_text(re.compile(r"^\d+ tokens? · \d+\.\d s · [\d.,]+ tokens/s$"))
    said = page.inner_text("#turns .prose")
    page.reload()
    expect(page.locator("#turns .prose")).to_have_text(said, use_inner_text=True)
    expect(page.locator("#list .current")).to_contain_text("孩子咳嗽三天了，要不要拍片子？")


@pytest.mark.parametrize("way", ["button", "key"])
def test_a_stopped_answer_keeps_what_came_and_frees_the_server(visit: Visit, way: str) -> None:
    page = visit(held=True)
    ask(page, "头痛怎么办")
    sent(page)
    page.evaluate("asked[0].say('多休')")
    expect(page.locator("#turns .prose")).to_have_text("多休")
    page.press("#question", "Escape") if way == "key" else page.click("#composer >> role=button[name='Stop']")
    expect(answers(page, "stopped")).to_contain_text("Stopped.")
    assert page.evaluate("asked[0].aborted")
    expect(page.locator("#turns .prose")).to_have_text("多休")
    page.reload()
    expect(answers(page, "stopped").locator(".prose")).to_have_text("多休")


def test_a_reload_in_the_middle_keeps_what_came_and_says_that_it_was_cut(visit: Visit) -> None:
    page = visit(held=True)
    ask(page, "头痛怎么办")
    sent(page)
    page.evaluate("asked[0].say('多休息，')")
    expect(page.locator("#turns .prose")).to_have_text("多休息，")
    page.evaluate("asked[0].say('少看手机')")
    page.reload()
    expect(answers(page, "cut").locator(".prose")).to_have_text("多休息，少看手机")
    expect(answers(page, "cut")).to_contain_text("Cut off: the page was left")
    page.locator("#turns").get_by_role("button", name="Answer again").click()
    sent(page)
    page.evaluate("asked[0].say('多喝水'), asked[0].end()")
    expect(answers(page, "done").locator(".prose")).to_have_text("多喝水")


def test_an_answer_given_again_and_a_question_asked_otherwise_lose_nothing(visit: Visit) -> None:
    page = visit()
    answering(page, "第一个回答")
    ask(page, "头痛")
    expect(answers(page, "done")).to_contain_text("第一个回答")
    answering(page, "第二个回答")
    page.locator("#turns").get_by_role("button", name="Answer again").click()
    expect(answers(page, "done")).to_contain_text("第二个回答")
    expect(page.locator(".version")).to_have_text("2/2")
    page.get_by_role("button", name="Previous version").click()
    expect(answers(page)).to_contain_text("第一个回答")
    page.hover(".asked")
    page.get_by_role("button", name="Edit the question").click()
    page.get_by_role("textbox", name="Edit the question").fill("肚子痛")
    answering(page, "关于肚子")
    page.keyboard.press("Enter")
    expect(answers(page, "done")).to_contain_text("关于肚子")
    expect(page.locator(".bubble")).to_have_text("肚子痛")
    page.reload()
    expect(page.locator(".bubble")).to_have_text("肚子痛")
    page.hover(".asked")
    page.get_by_role("button", name="Previous version").click()
    expect(page.locator(".bubble")).to_have_text("头痛")
    expect(answers(page)).to_contain_text("第一个回答")


def test_an_edit_that_is_cancelled_changes_nothing(visit: Visit) -> None:
    page = visit()
    answering(page, "多休息")
    ask(page, "头痛")
    expect(answers(page, "done")).to_have_count(1)
    page.hover(".asked")
    page.get_by_role("button", name="Edit the question").click()
    page.get_by_role("textbox", name="Edit the question").fill("别的")
    page.keyboard.press("Escape")
    expect(page.locator(".bubble")).to_have_text("头痛")
    expect(page.get_by_role("button", name="Edit the question")).to_be_focused()


def test_a_conversation_is_sent_whole_up_to_the_question_and_a_failed_round_left_out(visit: Visit) -> None:
    page = visit(held=True, route=several_turns)
    page.wait_for_selector("#alone", state="hidden")
    for number, (question, answer) in enumerate([("一", "甲"), ("二", ""), ("三", "丙")]):
        ask(page, question)
        sent(page, number)
        page.evaluate(f"asked[{number}].say('{answer}')" if answer else f"asked[{number}].hang_up()")
        if answer:
            page.evaluate(f"asked[{number}].end()")
        page.wait_for_selector("#composer >> role=button[name='Send']")
    assert [m["content"] for m in sent(page, 2)["messages"]] == ["一", "甲", "三"]
    page.locator(".asked").nth(0).hover()
    page.locator(".asked").nth(0).get_by_role("button", name="Edit the question").click()
    page.keyboard.type("改")
    page.keyboard.press("Enter")
    assert sent(page, 3)["messages"] == [{"role": "user", "content": "一改"}]
    expect(page.locator(".bubble")).to_have_count(1)


def test_a_format_of_one_question_says_so_and_sends_only_the_newest(visit: Visit) -> None:
    page = visit(held=True)
    expect(page.locator("#alone")).to_have_text(
        "The format chatmed holds a single question: each stands alone, and earlier ones are not sent."
    )
    for number, question in enumerate(("一", "二")):
        ask(page, question)
        assert sent(page, number)["messages"] == [{"role": "user", "content": question}]
        page.evaluate(f"asked[{number}].say('好'), asked[{number}].end()")
        expect(answers(page, "done")).to_have_count(number + 1)


def test_what_is_set_is_sent_and_what_is_empty_is_the_models(visit: Visit) -> None:
    page = visit(held=True, route=several_turns)
    ask(page, "一")
    assert set(sent(page, 0)) == {"model", "messages", "stream", "stream_options"}
    page.evaluate("asked[0].say('好'), asked[0].end()")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Top p").fill("7")  # no share is above 1: not kept
    page.get_by_label("Longest answer").fill("12")
    page.get_by_label("Seed").fill("3")
    page.get_by_label("System turn").fill("你是一名医生。")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="New conversation").click()
    ask(page, "二")
    request = sent(page, 1)
    assert request["messages"] == [{"role": "system", "content": "你是一名医生。"}, {"role": "user", "content": "二"}]
    assert {name: request.get(name) for name in ("temperature", "top_p", "max_tokens", "seed")} == {
        "temperature": 0,
        "top_p": None,
        "max_tokens": 12,
        "seed": 3,
    }
    page.evaluate("asked[1].say('好'), asked[1].end('length', 12)")
    expect(answers(page, "length")).to_contain_text("The limit of 12 tokens was reached.")
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="Reset").click()
    page.get_by_role("button", name="Close").click()
    ask(page, "三")
    assert "seed" not in sent(page, 2)


def test_a_system_turn_is_not_sent_to_a_format_without_one(visit: Visit) -> None:
    page = visit()
    page.get_by_role("button", name="Settings").click()
    expect(page.get_by_label("System turn")).to_be_disabled()
    expect(page.locator("#meaning-system")).to_contain_text("has no system turn")


# ---- conversations


def test_several_conversations_are_kept_renamed_exported_and_deleted(visit: Visit) -> None:
    page = visit()
    page.on("dialog", lambda dialog: pytest.fail(f"a dialog of the browser's own: {dialog.message}"))
    answering(page, "**多休息**")
    ask(page, "头痛怎么办")
    expect(answers(page, "done")).to_have_count(1)
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator("#turns .answer")).to_have_count(0)
    ask(page, "肚子痛怎么办")
    expect(answers(page, "done")).to_have_count(1)
    rows = page.locator("#list li")
    expect(rows).to_contain_text(["肚子痛怎么办", "头痛怎么办"])

    rows.nth(1).hover()
    rows.nth(1).get_by_role("button", name="Rename").click()
    page.get_by_label("Name", exact=True).fill("<b>头</b>")
    page.keyboard.press("Enter")
    expect(rows.nth(1)).to_contain_text("<b>头</b>")

    with page.expect_download() as download:
        page.get_by_role("button", name="Export all").click()
    exported = json.loads(Path(download.value.path()).read_text("utf-8"))
    assert [talk["title"] for talk in exported] == ["肚子痛怎么办", "<b>头</b>"]
    assert exported[1]["messages"] == [
        {"role": "user", "content": "头痛怎么办"},
        {"role": "assistant", "content": "**多休息**"},
    ]

    rows.nth(0).hover()
    rows.nth(0).get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Cancel").click()
    expect(rows).to_have_count(2)
    rows.nth(0).hover()
    rows.nth(0).get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(rows).to_have_count(1)
    expect(page.locator("#turns .answer")).to_have_count(0)  # it was the one in view
    rows.nth(0).get_by_role("button").first.click()
    expect(page.locator(".bubble")).to_have_text("头痛怎么办")
    page.reload()
    expect(rows).to_have_count(1)
    page.get_by_role("button", name="Delete all").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete all").click()
    expect(rows).to_have_count(0)
    assert page.evaluate("Object.keys(localStorage).filter((name) => name.includes('conversation.'))") == []


def test_one_conversation_goes_on_while_another_is_read(visit: Visit) -> None:
    page = visit(held=True)
    ask(page, "头痛")
    sent(page)
    page.get_by_role("button", name="New conversation").click()
    ask(page, "肚子痛")
    sent(page, 1)
    page.evaluate("asked[0].say('多休息'), asked[0].end()")
    page.evaluate("asked[1].say('喝热水'), asked[1].end()")
    expect(answers(page, "done")).to_contain_text("喝热水")
    page.locator("#list li").filter(has_text="头痛").get_by_role("button").first.click()
    expect(answers(page, "done")).to_contain_text("多休息")


def test_another_tab_shows_what_was_asked_here(visit: Visit) -> None:
    page = visit()
    other = page.context.new_page()
    other.goto(page.url)
    expect(other.locator("#list")).to_contain_text("stay in this browser only")
    answering(page, "多休息")
    ask(page, "头痛")
    expect(other.locator("#list li")).to_contain_text("头痛")


def test_a_browser_that_keeps_nothing_is_named_and_the_page_goes_on(visit: Visit) -> None:
    full = "Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError') }"
    page = visit(route=lambda page: page.add_init_script(full))
    answering(page, "多休息")
    page.wait_for_selector("#model option:not([value=''])", state="attached")
    ask(page, "头痛")
    expect(answers(page, "done")).to_contain_text("多休息")
    expect(page.get_by_role("alert")).to_contain_text("keeps nothing more")


# ---- two models


def test_two_models_answer_the_same_question_side_by_side(visit: Visit) -> None:
    page = visit()
    page.get_by_role("tab", name="Compare").click()
    ask(page, "孩子咳嗽三天了，要不要拍片子？", "#compare-question")
    both = page.locator(".pair .answer:is([data-state='done'], [data-state='length'])")
    expect(both).to_have_count(2)
    expect(both.nth(0).locator(".who")).to_contain_text("base · ")
    expect(both.nth(1).locator(".who")).not_to_contain_text("base")
    for answer in both.all():
        numbers = r"\d+ tokens? · \d+\.\d s · [\d.,]+ tokens/s · first after \d+\.\d\d s$"
        expect(answer.locator(".numbers")).to_have_text(re.compile(numbers))
    said = page.inner_text(".pair")
    page.reload()  # the tab and what is in it are there again
    expect(page.locator(".pair")).to_have_text(said, use_inner_text=True)


def test_both_models_are_asked_at_once_and_stopped_at_once(visit: Visit) -> None:
    page = visit(held=True, path="#compare")
    ask(page, "头痛", "#compare-question")
    models = [sent(page, at)["model"] for at in (0, 1)]
    assert len(set(models)) == 2
    page.evaluate("asked[0].say('左边'), asked[1].say('右边')")
    expect(page.locator(".pair .prose")).to_have_text(["左边", "右边"])
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".pair [data-state='stopped'] .prose")).to_have_text(["左边", "右边"])
    assert page.evaluate("asked.map((one) => one.aborted)") == [True, True]
    page.get_by_role("button", name="Answer again").click()
    assert [sent(page, at)["model"] for at in (2, 3)] == models
    page.evaluate("asked[2].say('甲'), asked[2].end(), asked[3].hang_up()")
    expect(page.locator(".pair [data-state='done'] .prose")).to_have_text("甲")
    expect(page.locator(".pair [data-state='failed']")).to_contain_text("the connection broke")
    page.get_by_role("button", name="Delete").click()
    expect(page.locator(".pair")).to_have_count(0)


# ---- what a model may write

HOSTILE = """开头 <img src=x onerror="window.hacked = 10"> <script>window.hacked = 11</script>

<script>window.hacked = 1</script>

<img src="https://evil.example/a.png" onerror="window.hacked = 2">
<svg onload="window.hacked = 3"><style>body { display: none }</style>

<iframe src="javascript:parent.hacked = 4"></iframe>

<a href="javascript:window.hacked = 5" onclick="window.hacked = 6" style="position: fixed">甲</a>

[乙](javascript:window.hacked=7) [丙](JaVaScRiPt&#58;window.hacked=8) [丁](data:text/html,<script>1</script>)
![图](https://evil.example/b.png) ![点](data:image/svg+xml,<svg/onload=alert(1)>)
[戊](https://good.example/x) <https://good.example/y> [己](/v1/models)

<form action="https://evil.example"><input name="q"><button>x</button></form>
<math><mtext><table><mglyph><style><img src onerror="window.hacked = 9">

结尾"""


def test_what_a_model_writes_runs_nothing_and_fetches_nothing(visit: Visit, server: str) -> None:
    fetched: list[str] = []
    page = visit(route=lambda page: page.on("request", lambda request: fetched.append(request.url)))
    page.wait_for_selector("#model option:not([value=''])", state="attached")
    page.on("dialog", lambda dialog: pytest.fail(f"the model opened a dialog: {dialog.message}"))
    answering(page, *re.findall(r".{1,7}", HOSTILE, re.DOTALL))
    fetched.clear()
    ask(page, "头痛")
    expect(answers(page, "done")).to_contain_text("结尾")
    prose = page.locator("#turns .prose")
    expect(prose).to_contain_text("<script>window.hacked = 1</script>")  # as the text it is
    for link in prose.locator("a").all():
        if link.get_attribute("href"):
            assert link.get_attribute("href").startswith("https://")
            assert link.get_attribute("rel") == "noopener noreferrer nofollow"
    addresses = prose.locator("a").evaluate_all("(links) => links.map((link) => link.getAttribute('href'))")
    assert {"https://good.example/x", "https://good.example/y", "https://evil.example/b.png"} <= set(addresses)
    for link in prose.locator("a").filter(has_text=re.compile("^[乙丙丁己]$")).all():
        link.click()
    foreign = "script, img, svg, iframe, style, form, input, math, object, [onerror], [onclick], [onload], [style]"
    assert prose.locator(foreign).count() == 0
    page.reload()
    expect(prose).to_contain_text("结尾")
    assert page.evaluate("window.hacked") is None
    elsewhere = [url for url in fetched if not url.startswith((server, "blob:"))]
    assert elsewhere == []


def test_markdown_is_laid_out_as_it_comes(visit: Visit) -> None:
    page = visit(held=True)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    ask(page, "头痛")
    sent(page)
    page.evaluate("asked[0].say('## 原因\\n\\n**注意：**请看\\n\\n|甲|乙|\\n|:-|-:|\\n|1|2|\\n\\n')")
    expect(page.locator(".prose h2")).to_have_text("原因")
    expect(page.locator(".prose strong")).to_have_text("注意：")
    expect(page.locator(".prose td").nth(1)).to_have_css("text-align", "right")
    page.evaluate("document.querySelector('.prose h2').mark = true")
    page.evaluate("asked[0].say('```python\\nprint(1 < 2)\\n```\\n\\n- 一\\n- 二'), asked[0].end()")
    expect(answers(page, "done").locator("li")).to_have_text(["一", "二"])
    assert page.evaluate("document.querySelector('.prose h2').mark")  # what had come was not made anew
    expect(page.locator(".code-head span")).to_have_text("python")
    page.locator(".code-head").get_by_role("button", name="Copy").click()
    assert page.evaluate("navigator.clipboard.readText()") == "print(1 < 2)"


# ---- what the server refuses


def test_a_busy_server_is_waited_for_and_asked_again(visit: Visit) -> None:
    page = visit()
    page.clock.install()
    refusing(page, 429, "16 are being answered", **{"Retry-After": "5"})
    ask(page, "头痛")
    failed = answers(page, "failed")
    expect(failed).to_contain_text("The server is busy. It asks for 5 seconds of patience.")
    expect(failed).to_contain_text("The server says: 16 are being answered")
    again = failed.get_by_role("button", name="Try again")
    expect(again).to_be_disabled()
    page.clock.run_for(4200)
    expect(failed).to_contain_text("1 second of patience")
    page.clock.run_for(1000)
    answering(page, "多休息")
    again.click()
    expect(answers(page, "done")).to_contain_text("多休息")
    expect(answers(page)).to_have_count(1)
    expect(page.locator(".version")).to_have_count(0)  # an answer that never came is no version


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (400, "context_length_exceeded", "This is more than the model can read at once."),
        (400, None, "The server refused this request."),
        (404, "model_not_found", "The server does not have this model any more."),
        (503, None, "The server is not ready to answer"),
        (500, None, "Something went wrong in the server."),
    ],
)
def test_a_refusal_is_said_in_words(visit: Visit, status: int, code: str | None, words: str) -> None:
    page = visit()
    refusing(page, status, "2,310 tokens", code)
    ask(page, "头痛")
    expect(answers(page, "failed")).to_contain_text(words)
    expect(answers(page, "failed")).to_contain_text("The server says: 2,310 tokens")
    answering(page, "多休息")
    page.get_by_role("button", name="Try again").click()
    expect(answers(page, "done")).to_contain_text("多休息")


def test_a_question_longer_than_the_model_reads_is_refused_as_such(visit: Visit) -> None:
    page = visit()
    ask(page, "头痛" * 3000)
    expect(answers(page, "failed")).to_contain_text("This is more than the model can read at once.")


def test_an_error_in_the_middle_keeps_what_came(visit: Visit) -> None:
    page = visit(held=True)
    ask(page, "头痛")
    sent(page)
    page.evaluate("asked[0].say('多休'), asked[0].event({error: {message: 'out of memory', type: 'server_error'}})")
    expect(answers(page, "failed").locator(".prose")).to_have_text("多休")
    expect(answers(page, "failed")).to_contain_text("The server says: out of memory")


def test_a_server_that_is_gone_is_named_and_found_again(visit: Visit) -> None:
    page = visit()
    page.route(ASKED, lambda route: route.abort())
    ask(page, "头痛")
    expect(answers(page, "failed")).to_contain_text("The server cannot be reached.")
    page.route("**/page/settings", lambda route: route.abort())
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("The server cannot be reached.")
    page.unroute("**/page/settings")
    page.get_by_role("alert").get_by_role("button", name="Try again").click()
    expect(page.get_by_role("alert")).to_have_count(0)
    answering(page, "多休息")
    answers(page, "failed").get_by_role("button", name="Try again").click()
    expect(answers(page, "done")).to_contain_text("多休息")


def test_a_key_is_asked_for_when_it_is_needed_and_held_in_the_tab_only(visit: Visit) -> None:
    def locked(route: Any) -> None:
        if route.request.headers.get("authorization") != "Bearer right":
            route.fulfill(status=401, json={"error": {"message": "no key", "type": "error", "code": "invalid_api_key"}})
        elif "models" in route.request.url:
            route.fallback()
        else:
            route.fulfill(content_type="text/event-stream", body=stream("多休息"))

    page = visit(route=lambda page: page.route("**/v1/**", locked))
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("This server asks for a key")
    page.get_by_label("API key").fill("wrong")
    page.keyboard.press("Enter")
    expect(dialog).to_contain_text("The server did not accept that key.")
    page.get_by_label("API key").fill("right")
    page.keyboard.press("Enter")
    expect(dialog).to_have_count(0)
    page.wait_for_selector("#model option:not([value=''])", state="attached")
    ask(page, "头痛")
    expect(answers(page, "done")).to_contain_text("多休息")
    assert "right" not in page.evaluate("JSON.stringify(localStorage)")
    page.reload()  # it is asked for once
    page.wait_for_selector("#model option:not([value=''])", state="attached")
    expect(dialog).to_have_count(0)
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="Forget it").click()
    page.keyboard.press("Escape")
    ask(page, "肚子痛")
    expect(dialog).to_contain_text("This server asks for a key")
    page.keyboard.press("Escape")
    expect(answers(page, "failed")).to_contain_text("The server asks for a key.")
    page.get_by_role("button", name="Enter a key").click()
    page.get_by_label("API key").fill("right")
    page.keyboard.press("Enter")
    expect(answers(page, "done")).to_have_count(2)


# ---- by keyboard, on a telephone, in both languages, dark and light


def test_everything_is_done_by_keyboard_and_the_focus_is_seen(visit: Visit) -> None:
    page = visit()
    answering(page, "多休息")
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the question")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.type("头痛")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("怎么办")
    page.keyboard.press("Enter")
    expect(page.locator(".bubble")).to_have_text("头痛\n怎么办", use_inner_text=True)
    expect(answers(page, "done")).to_have_count(1)
    expect(page.locator("#question")).to_be_focused()

    names = []
    for _ in range(40):
        page.keyboard.press("Shift+Tab")
        focused = page.evaluate(
            """() => {
              const it = document.activeElement, style = getComputedStyle(it);
              const seen = it.checkVisibility({opacityProperty: true, visibilityProperty: true});
              const name = it.getAttribute("aria-label") || it.textContent.trim() || it.id;
              return [name, seen && style.outlineStyle !== "none" && it.getBoundingClientRect().width > 20];
            }"""
        )
        if focused[0] == "Skip to the question" or page.evaluate("document.activeElement === document.body"):
            break
        assert focused[1], f"{focused[0]} has the focus, and nobody sees it"
        names.append(focused[0])
    assert {"Answer again", "Edit the question", "Copy", "Delete", "Rename", "New conversation", "Chat"} <= set(names)

    page.get_by_role("tab", name="Chat").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Compare")).to_be_focused()
    expect(page.locator("#compare-question")).to_be_visible()
    page.keyboard.press("ArrowLeft")
    page.get_by_role("button", name="Edit the question").focus()
    page.keyboard.press("Enter")
    page.keyboard.type("？")
    page.keyboard.press("Enter")
    expect(page.locator(".bubble")).to_have_text("头痛\n怎么办？", use_inner_text=True)


def test_enter_that_chooses_a_word_does_not_send(visit: Visit) -> None:
    page = visit(held=True)
    page.focus("#question")
    typing = page.context.new_cdp_session(page)
    typing.send("Input.imeSetComposition", {"text": "tou", "selectionStart": 3, "selectionEnd": 3})
    typing.send("Input.dispatchKeyEvent", {"type": "rawKeyDown", "key": "Enter", "windowsVirtualKeyCode": 229})
    typing.send("Input.insertText", {"text": "头痛"})
    expect(page.locator("#question")).to_have_value("头痛")
    expect(page.locator(".bubble")).to_have_count(0)
    page.keyboard.press("Enter")
    expect(page.locator(".bubble")).to_have_text("头痛")


def test_an_answer_is_spoken_in_sentences(visit: Visit) -> None:
    page = visit(held=True)
    ask(page, "头痛")
    sent(page)
    spoken = page.locator("[aria-live='polite'] p")
    page.evaluate("asked[0].say('多休')")
    page.evaluate("asked[0].say('息。少看')")
    expect(spoken).to_have_text(["多休息。"])
    page.evaluate("asked[0].say('手机'), asked[0].end()")
    expect(spoken).to_have_text(["多休息。", "少看手机", "The answer is complete."])


def test_a_telephone_shows_all_of_it_and_never_scrolls_sideways(visit: Visit) -> None:
    table = "\n".join("|" + cell * 9 for cell in ("甲甲甲甲甲甲|", "-|", "乙|"))
    page = visit(viewport={"width": 360, "height": 700}, has_touch=True, is_mobile=True)
    answering(page, "很长" * 200, "\n\n```\n", "x" * 400, "\n```\n\n", table, "\n\n", "y" * 300)

    def fits() -> None:
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.evaluate("document.querySelector('#scroll').scrollWidth <= 360")
        outside = page.evaluate(
            """() => [...document.querySelectorAll("button, select, textarea, .disclaimer")]
              .filter((each) => each.checkVisibility({visibilityProperty: true}) && !each.closest("#side"))
              .filter((each) => each.getBoundingClientRect().right > 361).map((each) => each.outerHTML)"""
        )
        assert outside == []

    fits()
    page.fill("#question", "z" * 200)
    page.tap("#composer .send")
    expect(answers(page, "done")).to_have_count(1)
    fits()
    expect(page.locator("#chat .disclaimer")).to_be_in_viewport()
    expect(page.locator("#side")).not_to_be_in_viewport()
    page.tap("#open-side")
    expect(page.locator("#side")).to_be_in_viewport()
    page.get_by_role("button", name="New conversation").tap()
    expect(page.locator("#side")).not_to_be_in_viewport()
    page.get_by_role("tab", name="Compare").tap()
    page.fill("#compare-question", "头痛")
    page.tap("#compare .send")
    expect(page.locator(".pair [data-state='done']")).to_have_count(2)
    fits()
    page.get_by_role("button", name="Settings").tap()
    fits()


def test_the_page_speaks_the_browsers_language_until_the_other_is_chosen(visit: Visit) -> None:
    page = visit(locale="zh-CN")
    answering(page, "多休息")
    expect(page.get_by_role("tab", name="对比")).to_be_visible()
    ask(page, "头痛")
    expect(answers(page, "done")).to_have_count(1)
    assert not re.search("Ask|Copy|Model|Send|Settings", page.inner_text("body"))
    page.get_by_role("button", name="English").click()
    expect(page.get_by_role("tab", name="Compare")).to_be_visible()
    expect(page.locator("html")).to_have_attribute("lang", "en")
    assert not re.search("模型|对话|设置|导出", page.inner_text("body"))
    page.reload()
    expect(page.get_by_role("tab", name="Compare")).to_be_visible()


def test_both_languages_say_everything(visit: Visit) -> None:
    told = visit().evaluate(
        """async () => {
          const [{en}, {zh}] = [await import("/page/words-en.js"), await import("/page/words-zh.js")];
          const kinds = (table) => Object.entries(table).map(([key, words]) => [key, typeof words, Boolean(words)]);
          return [kinds(en), kinds(zh)];
        }"""
    )
    assert told[0] == told[1]
    known = {key for key, _, _ in told[0]}
    sources = "".join(file.read_text("utf-8") for file in FOLDER.glob("*.js") if not file.name.startswith("words-"))
    asked = set(re.findall(r'\bsay\(\s*"(\w+)"', sources))
    asked |= set(re.findall(r'data-(?:word|label|placeholder)="(\w+)"', (FOLDER / "index.html").read_text("utf-8")))
    assert asked <= known


def test_dark_and_light_follow_the_system_until_one_is_chosen(visit: Visit) -> None:
    page = visit(color_scheme="dark")
    paper = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(paper)
    page.emulate_media(color_scheme="light")
    expect(page.locator("html")).to_have_attribute("data-theme", "light")
    light = page.evaluate(paper)
    assert light == "rgb(255, 255, 255)" != dark
    page.get_by_role("button", name="Appearance: as the system").click()
    page.get_by_role("button", name="Appearance: light").click()
    assert page.evaluate(paper) == dark
    page.reload()
    assert page.evaluate(paper) == dark


def test_the_disclaimer_and_the_note_on_a_tiny_model_are_always_in_sight(visit: Visit, server: str) -> None:
    page = visit()
    told = page.request.get(f"{server}/page/settings").json()
    answering(page, "多休息。\n\n" * 60)
    ask(page, "头痛")
    expect(answers(page, "done")).to_have_count(1)
    for view, field in (("Chat", "#chat"), ("Compare", "#compare")):
        page.get_by_role("tab", name=view).click()
        expect(page.locator(f"{field} .disclaimer")).to_have_text(told["disclaimer"]["en"])
        expect(page.locator(f"{field} .disclaimer")).to_be_in_viewport(ratio=1)
        expect(page.get_by_text("A tiny model, made on the spot")).to_be_in_viewport()
    page.get_by_role("button", name="中文").click()
    expect(page.locator("#compare .disclaimer")).to_have_text(told["disclaimer"]["zh"])
    expect(page).to_have_title(told["title"])


def test_every_control_has_a_name(visit: Visit) -> None:
    page = visit()
    answering(page, "多休息")
    ask(page, "头痛")
    expect(answers(page, "done")).to_have_count(1)
    page.get_by_role("button", name="Settings").click()
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, a, input, select, textarea")]
          .filter((it) => !(it.ariaLabel || it.textContent.trim() && it.matches("button, a") || it.labels?.length))
          .map((it) => it.outerHTML)"""
    )
    assert nameless == []
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((each) => each.id)")
    assert len(ids) == len(set(ids))


# ---- the files


def test_what_others_wrote_is_as_they_wrote_it() -> None:
    listed = re.findall(r"^([0-9a-f]{64})  (\S+)$", (FOLDER / "vendored.md").read_text("utf-8"), re.MULTILINE)
    assert {name for _, name in listed} == {"marked.js", "purify.js"}
    for digest, name in listed:
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == digest
        assert (FOLDER / name).with_suffix(".LICENSE").read_text("utf-8")
