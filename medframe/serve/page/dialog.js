// Questions put to the person in a dialog.

import { make } from "./element.js";
import { say } from "./words.js";

/** Shows a dialog; true when it was accepted, false when it was cancelled in any way. Focus returns to where it was. */
export function dialog({ title, content, accept, danger = false }) {
  const { promise, resolve } = settled();
  const box = make(
    "dialog",
    { "aria-labelledby": "dialog-title", onclose: () => (box.remove(), resolve(box.returnValue === "accept")) },
    make(
      "form",
      { method: "dialog" },
      make("h2", { id: "dialog-title" }, title),
      ...content,
      make(
        "div",
        { class: "dialog-foot" },
        // Not a submit button, so that Enter in a field accepts.
        make("button", { type: "button", class: "quiet", onclick: () => box.close("cancel") }, say("cancel")),
        make("button", { type: "submit", class: danger ? "danger" : "primary", value: "accept" }, accept),
      ),
    ),
  );
  document.body.append(box);
  box.showModal();
  return promise;
}

/** Asks whether something is to be destroyed. */
export function confirmed({ title, meaning, accept }) {
  return dialog({ title, content: [make("p", {}, meaning)], accept, danger: true });
}

/** Asks for a line of text, beginning with `value`; null where it was cancelled or left empty. */
export async function line({ title, label, value }) {
  const field = make("input", { id: "line", type: "text", value, maxlength: 120, required: true, autocomplete: "off" });
  const asked = dialog({ title, content: [make("label", { for: "line" }, label), field], accept: say("ok") });
  field.select();
  return (await asked) ? field.value.trim() || null : null;
}

function settled() {
  let resolve;
  const promise = new Promise((done) => (resolve = done));
  return { promise, resolve };
}
