// The turns of a conversation as they are seen: the question in its bubble, the answer, and what can be done with both.

import { AnswerView } from "./answer-view.js";
import { copy } from "./browser.js";
import { entersByKey, grow } from "./composer.js";
import { path, versions } from "./conversation.js";
import { iconButton, make } from "./element.js";
import { tell } from "./toast.js";
import { languageOf, say } from "./words.js";

/** The conversation's elements in order; `views` receives the view of each answer by the turn's id. */
export function turnsOf(talk, acts, views) {
  return path(talk).map((turn) => {
    if (turn.role === "user") return questionOf(talk, turn, acts);
    const actions = [
      ...arrows(talk, turn, acts),
      copier(() => turn.text, "bare of-words"),
      iconButton("again", say("regenerate"), () => acts.regenerate(turn), { class: "bare of-words" }),
    ];
    const view = new AnswerView({ answer: turn, again: () => acts.regenerate(turn), actions });
    views.set(turn.id, view);
    return view.element;
  });
}

function questionOf(talk, turn, acts) {
  const bubble = make("div", { class: "bubble", dir: "auto", lang: languageOf(turn.text) }, turn.text);
  const actions = make(
    "div",
    { class: "actions" },
    ...arrows(talk, turn, acts),
    copier(() => turn.text),
    iconButton("edit", say("edit"), () => edit(element, turn, acts)),
  );
  const element = make("article", { class: "asked", "aria-label": say("you") }, bubble, actions);
  return element;
}

/** Which of its versions a turn is, and the way to the others; nothing where it is the only one. */
function arrows(talk, turn, acts) {
  const all = versions(talk, turn);
  if (all.length < 2) return [];
  const at = all.indexOf(turn);
  const to = (name, word, other) => iconButton(name, say(word), () => acts.show(other), { disabled: !other });
  const told = make("span", { class: "version", "aria-label": say("version", { at: at + 1, of: all.length }) });
  told.textContent = `${at + 1}/${all.length}`;
  return [to("left", "previous", all[at - 1]), told, to("right", "next", all[at + 1])];
}

function copier(text, kind = "bare") {
  const act = async () => tell(say((await copy(text())) ? "copied" : "not_copied"));
  return iconButton("copy", say("copy"), act, { class: kind });
}

function edit(element, turn, acts) {
  const kept = [...element.childNodes];
  const field = make("textarea", { rows: 1, "aria-label": say("edit"), oninput: () => grow(field) });
  field.value = turn.text;
  const leave = () => {
    element.classList.remove("edited");
    element.replaceChildren(...kept);
    element.querySelector(".actions button:last-child").focus();
  };
  const form = make(
    "form",
    {
      class: "box",
      onsubmit: (event) => {
        event.preventDefault();
        if (field.value.trim()) acts.edit(turn, field.value.trim());
      },
      onkeydown: (event) => {
        if (event.key === "Escape" && !event.isComposing) {
          event.stopPropagation();
          leave();
        } else if (entersByKey(event) && event.target === field) {
          event.preventDefault();
          form.requestSubmit();
        }
      },
    },
    field,
    make("p", { class: "soft" }, say("edit_hint")),
    make(
      "div",
      { class: "dialog-foot" },
      make("button", { type: "button", class: "quiet", onclick: leave }, say("cancel")),
      make("button", { type: "submit", class: "primary" }, say("ask_again")),
    ),
  );
  element.classList.add("edited");
  element.replaceChildren(form);
  grow(field);
  field.focus();
}
