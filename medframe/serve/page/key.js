// The key the server may ask for: held in this tab only, and asked of the person when the server wants one.

import { keep, recall } from "./browser.js";
import { dialog } from "./dialog.js";
import { make } from "./element.js";
import { say } from "./words.js";

let held = recall("key", "", "sessionStorage");
let asking = null;

/** The key, or "" where none is held. */
export function key() {
  return held;
}

/** Holds this key until the tab is closed, over reloads; "" forgets it. */
export function hold(value) {
  held = value;
  keep("key", value || null, "sessionStorage");
}

/** Asks the person for a key and holds it; false where none was given. Two that ask at once share the question. */
export function askKey() {
  asking ??= ask().finally(() => (asking = null));
  return asking;
}

async function ask() {
  const field = make("input", { type: "password", id: "key", autocomplete: "off", spellcheck: "false", required: true });
  const given = await dialog({
    title: say("key_title"),
    content: [
      key() ? make("p", { class: "wrong", role: "alert" }, say("key_wrong")) : null,
      make("p", { class: "soft" }, say("key_meaning")),
      make("label", { for: "key" }, say("key")),
      field,
    ],
    accept: say("ok"),
  });
  if (!given || !field.value.trim()) return false;
  hold(field.value.trim());
  return true;
}
