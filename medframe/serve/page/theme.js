// Dark or light: as the system has it until one is chosen here.

import { keep, recall } from "./browser.js";
import { icon } from "./element.js";
import { say } from "./words.js";

const button = document.getElementById("theme");
const dark = matchMedia("(prefers-color-scheme: dark)");
const NEXT = { auto: "light", light: "dark", dark: "auto" };
let chosen = recall("theme") ?? "auto";

/** Begins to listen to the button and to the system. */
export function begin() {
  button.addEventListener("click", () => {
    chosen = NEXT[chosen];
    keep("theme", chosen === "auto" ? null : chosen);
    render();
  });
  dark.addEventListener("change", render);
  render();
}

/** Draws the button anew, as after a change of language. */
export function render() {
  const is = chosen === "auto" ? (dark.matches ? "dark" : "light") : chosen;
  document.documentElement.dataset.theme = is;
  button.replaceChildren(icon(chosen));
  button.title = say(`theme_${chosen}`);
  button.setAttribute("aria-label", button.title);
}
