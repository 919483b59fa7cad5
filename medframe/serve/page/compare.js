// Two models on the same question, both at once, side by side.

import { afterReload, answerTo, begun } from "./answer.js";
import { AnswerView } from "./answer-view.js";
import { fresh, keep, recall } from "./browser.js";
import { Composer } from "./composer.js";
import { confirmed } from "./dialog.js";
import { iconButton, make } from "./element.js";
import { sampling, systemFor } from "./options.js";
import { Scroller } from "./scroller.js";
import { called, modelOf, offer, pair, refresh, served } from "./served.js";
import { speak } from "./spoken.js";
import { listeners } from "./store.js";
import { tell } from "./toast.js";
import { languageOf, say } from "./words.js";

/** So many comparisons are kept. */
const KEPT = 50;

/** The comparison in its tab: each round is a question and the answers of two models. */
export class Compare {
  #rounds = recall("comparisons", []);
  #asked = null;
  #place = document.getElementById("rounds");
  #left = document.getElementById("left");
  #right = document.getElementById("right");
  #scroller = new Scroller(document.getElementById("rounds-scroll"));
  #composer = new Composer(document.getElementById("compare-composer"), {
    send: (text) => this.#ask(text),
    stop: () => this.stop(),
  });

  constructor() {
    this.#rounds.forEach((round) => round.answers.forEach(afterReload));
    addEventListener("pagehide", () => this.#asked && this.#keep());
  }

  /** Stops both answers; false where none is on its way. */
  stop() {
    this.#asked?.abort();
    return Boolean(this.#asked);
  }

  /** Offers the models that are served, a base and what was trained on it first. */
  offerModels() {
    const [left, right] = pair();
    offer(this.#left, modelOf(this.#left.value) ? this.#left.value : left);
    offer(this.#right, modelOf(this.#right.value) ? this.#right.value : right);
    this.render();
  }

  /** Draws all rounds anew, as after a change of language. */
  render() {
    this.#composer.running = Boolean(this.#asked);
    this.#place.replaceChildren(...(this.#rounds.length ? this.#rounds.map((round) => this.#round(round)) : [empty()]));
    if (this.#rounds.length && !this.#asked) this.#place.prepend(this.#clearer());
    this.#scroller.grown();
  }

  async #ask(question) {
    if (!served().length) await refresh().then(() => this.offerModels(), () => {});
    const models = [modelOf(this.#left.value), modelOf(this.#right.value)];
    if (!models.every(Boolean)) tell(say("no_models"));
    if (!models.every(Boolean) || this.#asked) return false;
    const round = { id: fresh(), question, answers: models.map((model) => begun(model.id)) };
    this.#rounds = [...this.#rounds, round].slice(-KEPT);
    this.#answer(round, models);
    return true;
  }

  async #answer(round, models) {
    this.#asked = new AbortController();
    const { signal } = this.#asked;
    this.views = new Map();
    this.render();
    this.#scroller.toEnd();
    this.#keep();
    await Promise.all(
      round.answers.map(async (answer, at) => {
        const system = systemFor(models[at]);
        const asked = [...(system ? [{ role: "system", content: system }] : []), { role: "user", content: round.question }];
        const request = { model: models[at].id, messages: asked, ...sampling() };
        await answerTo(request, answer, signal, () => this.views.get(answer)?.update(answer));
        speak(say("compare_done", { name: called(answer.model) }));
        speak(answer.text);
      }),
    );
    this.#asked = null;
    this.#keep();
    if (round.answers.some(({ refusal }) => refusal?.kind === "model_gone")) await refresh().then(() => this.offerModels(), () => {});
    this.render();
  }

  #round(round) {
    const again = () => {
      const models = round.answers.map((answer) => modelOf(answer.model));
      if (!models.every(Boolean)) tell(say("model_gone"));
      if (!models.every(Boolean) || this.#asked) return;
      round.answers = models.map((model) => begun(model.id));
      this.#answer(round, models);
    };
    const views = round.answers.map((answer) => {
      const view = new AnswerView({ answer, again, detailed: true });
      view.onshown = () => this.#scroller.grown();
      this.views?.set(answer, view);
      return view.element;
    });
    return make(
      "article",
      { class: "round", "aria-label": round.question },
      make(
        "header",
        {},
        make("h2", { lang: languageOf(round.question) }, round.question),
        make(
          "div",
          { class: "actions" },
          iconButton("again", say("regenerate"), again, { disabled: Boolean(this.#asked) }),
          iconButton("trash", say("delete"), () => this.#forget(round), { disabled: Boolean(this.#asked) }),
        ),
      ),
      make("div", { class: "pair" }, ...views),
    );
  }

  #clearer() {
    const act = async () => {
      if (await confirmed({ title: say("compare_clear_title"), meaning: "", accept: say("compare_clear") })) this.#forget();
    };
    return make("button", { type: "button", class: "quiet clear", onclick: act }, say("compare_clear"));
  }

  #forget(round) {
    this.#rounds = round ? this.#rounds.filter((each) => each !== round) : [];
    this.#keep();
    this.render();
    this.#composer.focus();
  }

  #keep() {
    if (!keep("comparisons", this.#rounds.length ? this.#rounds : null)) listeners.unkept();
  }
}

function empty() {
  return make(
    "div",
    { class: "empty" },
    make("h2", {}, say("compare_title")),
    make("p", { class: "soft" }, say("compare_meaning")),
    served().length === 1 ? make("p", { class: "soft" }, say("compare_one")) : null,
  );
}
