// An answer as it is seen, while it comes and afterwards.

import { running } from "./answer.js";
import { make } from "./element.js";
import { render } from "./markdown.js";
import { noticeOf } from "./notice.js";
import { called } from "./served.js";
import { languageOf, number, say } from "./words.js";

/** Milliseconds between two renderings of an answer that comes. */
const PACE = 60;

/** Shows an answer: call `update` whenever it has changed. `actions` are shown once it has ended; in detail, numbers come first. */
export class AnswerView {
  #text = make("div", { class: "prose" });
  #end = make("div");
  #numbers = make("span", { class: "numbers" });
  #actions;
  #detailed;
  #again;
  #later = 0;

  constructor({ answer, again, actions = [], detailed = false }) {
    this.#again = again;
    this.#detailed = detailed;
    this.#actions = make("div", { class: "actions" }, ...actions);
    const name = called(answer.model);
    this.element = make(
      "article",
      { class: "answer", "aria-label": name },
      make("p", { class: "who" }, make("span", {}, name), detailed ? this.#numbers : null),
      this.#text,
      this.#end,
      make("div", { class: "foot" }, detailed ? null : this.#numbers, this.#actions),
    );
    this.#draw(answer);
  }

  /** Shows the answer as it is now, at once where it has ended, else with the next rendering. */
  update(answer) {
    if (!running(answer)) {
      clearTimeout(this.#later);
      this.#draw(answer);
    } else if (!this.#later) {
      this.#later = setTimeout(() => this.#draw(answer), PACE);
    }
  }

  #draw(answer) {
    this.#later = 0;
    render(this.#text, answer.text);
    this.#text.lang = languageOf(answer.text);
    this.element.dataset.state = answer.state;
    this.element.classList.toggle("wordless", !answer.text && answer.state === "failed");
    this.element.setAttribute("aria-busy", running(answer));
    const waiting = answer.state === "waiting";
    const notice = noticeOf(answer, this.#again);
    this.#end.replaceChildren(...(waiting ? [dots()] : notice ? [notice] : []));
    this.#numbers.textContent = running(answer) ? "" : numbersOf(answer, this.#detailed);
    this.#actions.hidden = running(answer);
    this.onshown?.();
  }
}

/** "46 tokens · 2.1 s · 22.1 tokens/s", as far as it is known. */
export function numbersOf({ tokens, seconds, first }, detailed) {
  const known = [];
  if (tokens !== null) known.push(say("tokens", { count: number(tokens) }));
  if (seconds !== null && first !== null) known.push(say("seconds", { count: number(seconds, 1) }));
  if (tokens && seconds) known.push(say("rate", { count: number(tokens / seconds, 1) }));
  if (detailed && first !== null) known.push(say("first_after", { count: number(first, 2) }));
  return known.join(" · ");
}

function dots() {
  const each = () => make("span", { "aria-hidden": "true" });
  return make("div", { class: "dots", role: "img", "aria-label": say("waiting") }, each(), each(), each());
}
