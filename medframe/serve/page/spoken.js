// What a screen reader is told of an answer that comes: whole sentences, not the pieces they come in.

const region = document.getElementById("spoken");
const SENTENCE = /[^。！？!?\n]*(?:[。！？!?\n]+|\.(?=\s))/y;

/** Says something by itself. */
export function speak(text) {
  if (!text.trim()) return;
  const line = document.createElement("p");
  line.textContent = text;
  region.append(line);
  while (region.children.length > 20) region.firstElementChild.remove();
}

/** Says an answer sentence by sentence: give it the whole text each time it has grown, then `end`. */
export class Speaker {
  #at = 0;

  grown(text) {
    for (;;) {
      SENTENCE.lastIndex = this.#at;
      const found = SENTENCE.exec(text);
      if (!found) return;
      this.#at = SENTENCE.lastIndex;
      speak(found[0]);
    }
  }

  end(text, last) {
    this.grown(text);
    speak(text.slice(this.#at));
    speak(last);
  }
}
