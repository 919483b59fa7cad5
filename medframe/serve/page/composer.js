// The field in which a question is written, and the button that sends it or stops the answer.

import { icon } from "./element.js";
import { say } from "./words.js";

/**
 * Whether this key sends: Enter without Shift, unless it chooses a word in an input method. While one composes,
 * browsers say so in `isComposing`, and Safari, which ends the composition first, by the key code 229.
 */
export function entersByKey(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229;
}

/** Makes a textarea as high as what is in it; the style sheet sets where it begins to scroll. */
export function grow(field) {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
}

/**
 * A composer in `form`, which has a textarea and a submit button: on Enter or the button `send(text)`, which resolves to
 * false where it could not be sent and is to be kept, or `stop()`.
 */
export class Composer {
  #button;
  #running = false;
  #sending = false;

  constructor(form, { send, stop }) {
    this.field = form.querySelector("textarea");
    this.#button = form.querySelector(".send");
    this.field.addEventListener("input", () => this.#changed());
    this.field.addEventListener("keydown", (event) => {
      if (!entersByKey(event)) return;
      event.preventDefault();
      if (!this.#running) form.requestSubmit();
    });
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const text = this.field.value.trim();
      if (this.#running) return stop();
      if (!text || this.#sending) return;
      this.#sending = true;
      if (await send(text)) this.write("");
      this.#sending = false;
    });
    this.running = false;
  }

  /** While an answer comes, the button stops it, and what is written waits. */
  set running(value) {
    this.#running = value;
    const word = say(value ? "stop" : "send");
    this.#button.replaceChildren(icon(value ? "stop" : "send"));
    this.#button.setAttribute("aria-label", word);
    this.#button.title = word;
    this.#button.classList.toggle("stop", value);
    this.#changed();
  }

  /** Puts the cursor into the field, but on a telephone, where its keyboard would cover what is to be read. */
  focus() {
    if (matchMedia("(hover: hover)").matches) this.field.focus();
  }

  /** Puts a text into the field. */
  write(text) {
    this.field.value = text;
    this.#changed();
  }

  #changed() {
    grow(this.field);
    this.#button.disabled = !this.#running && !this.field.value.trim();
  }
}
