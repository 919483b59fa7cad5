// The chat: one conversation in view, answers that may come in several at once.

import { answerTo, begun, running } from "./answer.js";
import { keep, recall } from "./browser.js";
import { Composer } from "./composer.js";
import { add, before, conversation, drop, messages, path, show } from "./conversation.js";
import { icon, make } from "./element.js";
import { List } from "./list.js";
import { explained } from "./notice.js";
import { sampling, systemFor } from "./options.js";
import { Scroller } from "./scroller.js";
import { formatOf, modelOf, offer, refresh } from "./served.js";
import { closeSide } from "./side.js";
import { Speaker } from "./spoken.js";
import { get, listeners, save } from "./store.js";
import { tell } from "./toast.js";
import { turnsOf } from "./turns.js";
import { say } from "./words.js";

const EXAMPLES = ["孩子咳嗽三天了，要不要拍片子？", "胃不舒服，反酸，应该挂哪个科？", "血压有点高，平时生活中要注意什么？"];
/** Milliseconds between two times that an answer on its way is kept. */
const KEPT_EVERY = 400;

/** The chat in its tab. */
export class Chat {
  #talk = conversation();
  #asked = new Map();
  #views = new Map();
  #turns = document.getElementById("turns");
  #model = document.getElementById("model");
  #latest = document.getElementById("latest");
  #scroller = new Scroller(document.getElementById("scroll"), (away) => (this.#latest.hidden = !away));
  #composer = new Composer(document.getElementById("composer"), {
    send: (text) => this.#ask(text),
    stop: () => this.stop(),
  });
  #list = new List({
    open: (talk) => this.open(talk),
    start: () => this.open(conversation()),
    gone: (ids) => this.#gone(ids),
    isRunning: (id) => this.#asked.has(id),
    current: () => this.#talk.id,
  });

  constructor() {
    this.#latest.append(icon("down"));
    this.#latest.addEventListener("click", () => this.#scroller.toEnd());
    this.#model.addEventListener("change", () => this.#chosen());
    listeners.changed = (id) => this.#changedElsewhere(id);
    // What has come so far is there again after a reload, in the middle of an answer too.
    addEventListener("pagehide", () => this.#asked.forEach((_, id) => get(id) && save(get(id))));
    const last = get(recall("current", "", "sessionStorage"));
    if (last) this.#talk = last;
  }

  /** Shows a conversation and puts the cursor where one goes on with it. */
  open(talk) {
    this.#talk = talk;
    keep("current", talk.id, "sessionStorage");
    closeSide();
    this.offerModels();
    this.render();
    this.#scroller.toEnd();
    this.#composer.focus();
  }

  /** Stops the answer in view; false where none is on its way. What has come of it stays. */
  stop() {
    const asked = this.#asked.get(this.#talk.id);
    asked?.abort();
    return Boolean(asked);
  }

  /** Offers the models that are served, the conversation's own first. */
  offerModels() {
    offer(this.#model, this.#talk.model);
    this.#chosen();
  }

  /** Draws the conversation and the list anew, as after a change of language. */
  render() {
    const busy = this.#asked.has(this.#talk.id);
    this.#views.clear();
    const acts = {
      edit: (turn, text) => this.#edit(turn, text),
      regenerate: (turn) => this.#regenerate(turn),
      show: (turn) => this.#show(turn),
    };
    const turns = turnsOf(this.#talk, acts, this.#views);
    this.#turns.replaceChildren(...(turns.length ? turns : [this.#empty()]));
    this.#turns.classList.toggle("busy", busy);
    for (const view of this.#views.values()) view.onshown = () => this.#scroller.grown();
    this.#composer.running = busy;
    this.#list.render();
    this.#scroller.grown();
  }

  async #ask(text) {
    return this.#put((talk) => add(talk, path(talk).at(-1), { role: "user", text }));
  }

  async #edit(turn, text) {
    return this.#put((talk) => add(talk, before(talk, turn), { role: "user", text }));
  }

  async #regenerate(answer) {
    return this.#put((talk) => {
      const question = before(talk, answer);
      // An answer of which nothing came is not worth an arrow.
      if (!answer.text) drop(talk, answer);
      return question;
    });
  }

  /** Has the question that `of` takes from the conversation answered; false where there is no model to ask. */
  async #put(of) {
    const talk = this.#talk;
    if (!modelOf(this.#model.value)) await refresh().then(() => this.offerModels(), () => {});
    const model = modelOf(this.#model.value);
    if (!model) tell(say("no_models"));
    if (!model || this.#asked.has(talk.id) || this.#talk !== talk) return false;
    this.#answer(talk, of(talk), model);
    return true;
  }

  #show(turn) {
    show(this.#talk, turn);
    save(this.#talk);
    this.render();
  }

  async #answer(talk, question, model) {
    const control = new AbortController();
    const answer = add(talk, question, { role: "assistant", ...begun(model.id) });
    talk.model = model.id;
    keep("current", talk.id, "sessionStorage");
    const request = {
      model: model.id,
      messages: messages(talk, question, { multiTurn: model.medframe?.multi_turn, system: systemFor(model) }),
      ...sampling(),
    };
    this.#asked.set(talk.id, control);
    save(talk);
    this.render();
    this.#scroller.toEnd();
    this.#composer.focus();
    await this.#follow(talk, answer, request, control.signal);
    if (answer.refusal?.kind === "model_gone") await refresh().then(() => this.offerModels(), () => {});
    this.#asked.delete(talk.id);
    if (!get(talk.id)) return;
    save(talk);
    if (this.#talk === talk) this.#ended();
    else this.#list.render();
  }

  async #follow(talk, answer, request, signal) {
    const speaker = new Speaker();
    let kept = 0;
    await answerTo(request, answer, signal, () => {
      if (this.#talk === talk) {
        this.#views.get(answer.id)?.update(answer);
        if (running(answer)) speaker.grown(answer.text);
      }
      if (running(answer) && Date.now() - kept > KEPT_EVERY && get(talk.id)) {
        kept = Date.now();
        save(talk);
      }
    });
    const last = { done: "answer_done", stopped: "stopped" }[answer.state];
    if (this.#talk === talk) speaker.end(answer.text, answer.refusal ? explained(answer.refusal) : last ? say(last) : "");
  }

  #ended() {
    this.#turns.classList.remove("busy");
    this.#composer.running = false;
    this.#list.render();
  }

  #gone(ids) {
    for (const id of ids) this.#asked.get(id)?.abort();
    if (ids.includes(this.#talk.id)) this.open(conversation());
    else this.#list.render();
  }

  #changedElsewhere(id) {
    const current = this.#talk.id;
    const shownChanged = id === null || id === current;
    if (shownChanged && !this.#asked.has(current) && this.#talk.turns.length) {
      this.#talk = get(current) ?? conversation();
      this.render();
    } else {
      this.#list.render();
    }
  }

  #chosen() {
    const model = modelOf(this.#model.value);
    const alone = document.getElementById("alone");
    document.getElementById("format").textContent = formatOf(model);
    alone.hidden = !model?.medframe || model.medframe.multi_turn;
    alone.textContent = alone.hidden ? "" : say("alone", { format: model.medframe.format });
  }

  #empty() {
    const example = (text) =>
      make(
        "button",
        { type: "button", class: "example", lang: "zh-CN", onclick: () => (this.#composer.write(text), this.#composer.focus()) },
        text,
      );
    return make(
      "div",
      { class: "empty" },
      make("h2", {}, say("empty_title")),
      make("p", { class: "soft" }, say("examples")),
      make("div", { class: "examples" }, ...EXAMPLES.map(example)),
    );
  }
}
