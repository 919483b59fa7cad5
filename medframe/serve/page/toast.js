// A word about what was just done, that goes away by itself.

const place = document.getElementById("told");
let timer = 0;

/** Shows it for three seconds; a screen reader says it. */
export function tell(text) {
  clearTimeout(timer);
  place.textContent = text;
  timer = setTimeout(() => (place.textContent = ""), 3000);
}
