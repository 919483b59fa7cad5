// What this browser keeps between visits, for as long as it lets us.

/** What is kept under `name`, or `otherwise`; never throws, also where a browser keeps nothing. */
export function recall(name, otherwise = null, where = "localStorage") {
  try {
    const text = window[where].getItem(`medframe.${name}`);
    return text === null ? otherwise : JSON.parse(text);
  } catch {
    return otherwise;
  }
}

/**
 * Keeps `value` under `name`, null: forgets it; false where the browser refused (full, or switched off). What is kept
 * in "sessionStorage" is this tab's own and goes with it.
 */
export function keep(name, value, where = "localStorage") {
  try {
    if (value === null) window[where].removeItem(`medframe.${name}`);
    else window[where].setItem(`medframe.${name}`, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

/** A new name for something; `crypto.randomUUID` exists on https and localhost only, and a hospital's network may be neither. */
export function fresh() {
  const bytes = crypto.getRandomValues(new Uint8Array(8));
  return Date.now().toString(36) + Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Copies text; true when it lies in the clipboard. Off https the clipboard is reached by the older way alone. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    area.className = "unseen";
    const before = document.activeElement;
    (document.querySelector("dialog[open]") ?? document.body).append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    before?.focus();
    return copied;
  }
}

/** Offers `content` as a file to be saved. */
export function download(name, content) {
  const address = URL.createObjectURL(new Blob([content], { type: "application/json" }));
  const link = document.createElement("a");
  link.href = address;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
