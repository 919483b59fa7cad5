// The conversations, kept in this browser: one entry each, so that a long answer does not write all of them anew.

import { afterReload } from "./answer.js";
import { keep, recall } from "./browser.js";

const PREFIX = "conversation.";
const talks = new Map();

/** Called with no arguments when the list has changed, here or in another tab; set by the page. */
export const listeners = { changed: () => {}, unkept: () => {} };

/** Reads what is kept; also listens to what other tabs of the page do. */
export function load() {
  for (const id of identities()) take(id);
  addEventListener("storage", (event) => {
    const id = event.key?.startsWith(`medframe.${PREFIX}`) ? event.key.slice(`medframe.${PREFIX}`.length) : null;
    if (event.key !== null && id === null) return;
    if (id === null) talks.clear();
    else if (event.newValue === null) talks.delete(id);
    else take(id);
    listeners.changed(id);
  });
}

/** All conversations, the last used first. */
export function all() {
  return [...talks.values()].sort((one, other) => other.updated - one.updated);
}

/** The conversation of that name, or undefined. */
export function get(id) {
  return talks.get(id);
}

/** Keeps a conversation as it is now; a browser that keeps nothing more is reported, and the page goes on. */
export function save(talk) {
  talks.set(talk.id, talk);
  if (!keep(PREFIX + talk.id, talk)) listeners.unkept();
}

/** Forgets a conversation. */
export function remove(id) {
  talks.delete(id);
  keep(PREFIX + id, null);
}

/** Forgets all of them. */
export function clear() {
  for (const id of [...talks.keys()]) remove(id);
}

function identities() {
  try {
    return Object.keys(localStorage)
      .filter((name) => name.startsWith(`medframe.${PREFIX}`))
      .map((name) => name.slice(`medframe.${PREFIX}`.length));
  } catch {
    return [];
  }
}

function take(id) {
  const talk = recall(PREFIX + id);
  // Something else under our name, or of another version: left alone.
  if (!Array.isArray(talk?.turns) || talk.id !== id) return;
  talk.turns.filter((turn) => turn.role === "assistant").forEach(afterReload);
  talks.set(id, talk);
}
