// On a narrow screen the list of conversations is a drawer over the page.

const side = document.getElementById("side");
const scrim = document.getElementById("scrim");
const opener = document.getElementById("open-side");
const narrow = matchMedia("(max-width: 760px)");
let open = false;

/** Begins to listen. */
export function begin() {
  opener.addEventListener("click", () => set(!open));
  scrim.addEventListener("click", () => set(false));
  narrow.addEventListener("change", () => set(false));
  set(false);
}

/** Closes the drawer; true when it was open. */
export function closeSide() {
  if (!open) return false;
  set(false);
  opener.focus();
  return true;
}

function set(value) {
  open = value && narrow.matches;
  side.classList.toggle("open", open);
  // What cannot be seen cannot be reached by keyboard either; nor what lies under the drawer.
  side.inert = narrow.matches && !open;
  scrim.hidden = !open;
  opener.setAttribute("aria-expanded", open);
  if (open) side.querySelector("button").focus();
}
