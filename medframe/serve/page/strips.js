// Lines across the page, under its head, about the page as a whole.

import { make } from "./element.js";
import { say } from "./words.js";

const place = document.getElementById("strips");
const shown = new Map();

/** Shows a line under a name of its own: `words()` gives its text in the language of the moment. */
export function strip(name, words, { urgent = false, again } = {}) {
  shown.set(name, { words, urgent, again });
  render();
}

/** Takes it away. */
export function unstrip(name) {
  if (shown.delete(name)) render();
}

/** Draws them anew, as after a change of language. */
export function render() {
  place.replaceChildren(
    ...[...shown.values()].map(({ words, urgent, again }) =>
      make(
        "div",
        { class: urgent ? "strip urgent" : "strip", role: urgent ? "alert" : "note" },
        make("span", {}, words()),
        again ? make("button", { type: "button", class: "quiet", onclick: again }, say("try_again")) : null,
      ),
    ),
  );
}
