// The list of conversations: to open one, to begin one, to rename, export and delete.

import { download } from "./browser.js";
import { exported } from "./conversation.js";
import { confirmed, line } from "./dialog.js";
import { icon, iconButton, make } from "./element.js";
import { all, clear, remove, save } from "./store.js";
import { languageOf, say } from "./words.js";

/** Draws the list; `acts` has open(talk), start(), gone(ids), isRunning(id) and current(). */
export class List {
  #acts;
  #list = document.getElementById("list");
  #new = document.getElementById("new");
  #exportAll = document.getElementById("export-all");
  #deleteAll = document.getElementById("delete-all");

  constructor(acts) {
    this.#acts = acts;
    this.#new.addEventListener("click", () => acts.start());
    this.#exportAll.addEventListener("click", () => offer("medframe-conversations.json", all()));
    this.#deleteAll.addEventListener("click", () => this.#deleteEvery());
  }

  /** Draws the conversations as they are now. */
  render() {
    const talks = all();
    // The button that has the focus is made anew: the focus goes to its successor.
    const focused = document.activeElement?.closest?.("[data-talk]")?.dataset.talk;
    this.#new.replaceChildren(icon("plus"), say("new_conversation"));
    this.#list.replaceChildren(...groups(talks).flatMap(([word, some]) => this.#group(word, some)));
    if (!talks.length) this.#list.append(make("p", { class: "soft none" }, say("none_yet")));
    this.#exportAll.disabled = this.#deleteAll.disabled = !talks.length;
    if (focused) this.#list.querySelector(`[data-talk="${CSS.escape(focused)}"] .entry`)?.focus();
  }

  #group(word, talks) {
    const title = make("h2", {}, say(word));
    return [title, make("ul", { "aria-label": say(word) }, ...talks.map((talk) => this.#item(talk)))];
  }

  #item(talk) {
    const current = this.#acts.current() === talk.id;
    const running = this.#acts.isRunning(talk.id);
    return make(
      "li",
      { "data-talk": talk.id, class: current ? "current" : null },
      make(
        "button",
        { type: "button", class: "entry", title: talk.title, "aria-current": current ? "page" : null, onclick: () => this.#acts.open(talk) },
        make("span", { class: "name", lang: languageOf(talk.title) }, talk.title),
        running ? make("span", { class: "pulse", role: "img", "aria-label": say("answering_there") }) : null,
      ),
      make(
        "div",
        { class: "item-acts" },
        iconButton("edit", say("rename"), () => this.#rename(talk)),
        iconButton("save", say("export"), () => offer(fileName(talk), [talk])),
        iconButton("trash", say("delete"), () => this.#delete(talk)),
      ),
    );
  }

  async #rename(talk) {
    const title = await line({ title: say("rename_title"), label: say("name"), value: talk.title });
    if (!title) return;
    talk.title = title;
    save(talk);
    this.render();
  }

  async #delete(talk) {
    const meaning = say("delete_meaning", { name: talk.title });
    if (!(await confirmed({ title: say("delete_title"), meaning, accept: say("delete") }))) return;
    remove(talk.id);
    this.#acts.gone([talk.id]);
  }

  async #deleteEvery() {
    const talks = all();
    const meaning = say("delete_all_meaning", { count: talks.length });
    if (!(await confirmed({ title: say("delete_all_title"), meaning, accept: say("delete_all") }))) return;
    clear();
    this.#acts.gone(talks.map((talk) => talk.id));
  }
}

function offer(name, talks) {
  download(name, `${JSON.stringify(talks.map(exported), null, 2)}\n`);
}

function fileName(talk) {
  return `medframe-${new Date(talk.created).toISOString().slice(0, 10)}-${talk.id.slice(-6)}.json`;
}

/** [word, conversations] by when they were last used. */
function groups(talks) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  const day = 24 * 3600 * 1000;
  const age = ({ updated }) =>
    updated >= midnight ? "today" : updated >= midnight - day ? "yesterday" : updated >= midnight - 7 * day ? "this_week" : "earlier";
  return ["today", "yesterday", "this_week", "earlier"]
    .map((word) => [word, talks.filter((talk) => age(talk) === word)])
    .filter(([, some]) => some.length);
}
