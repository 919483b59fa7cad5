// A place that scrolls, and stays at its end while more comes, unless the person has gone up to read.

/** Watches `element`; `away(bool)` is called when the end comes into view or leaves it. */
export class Scroller {
  #element;
  #away;
  #held = true;

  constructor(element, away = () => {}) {
    this.#element = element;
    this.#away = away;
    element.addEventListener("scroll", () => this.#look(), { passive: true });
  }

  /** Something has grown: goes on to the end where the end was in view. */
  grown() {
    if (this.#held) this.toEnd();
    else this.#look();
  }

  /** Goes to the end and stays there. */
  toEnd() {
    this.#held = true;
    this.#element.scrollTop = this.#element.scrollHeight;
    this.#away(false);
  }

  #look() {
    const { scrollHeight, scrollTop, clientHeight } = this.#element;
    this.#held = scrollHeight - scrollTop - clientHeight < 40;
    this.#away(!this.#held);
  }
}
