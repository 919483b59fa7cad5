// In words, how an answer ended, and what can be done about it.

import { make } from "./element.js";
import { number, say } from "./words.js";

/** Why there is no answer, in the person's language. */
export function explained(refusal) {
  return say(refusal.kind, { seconds: waitOf(refusal) });
}

/** So many whole seconds are to be waited. */
export function waitOf(refusal) {
  return Math.max(0, Math.ceil((refusal.until - Date.now()) / 1000));
}

/**
 * The notice under an answer that did not simply end, or null. `again` asks anew; while the server wants patience the
 * button waits, and the notice counts the seconds down for as long as it is shown.
 */
export function noticeOf(answer, again) {
  if (answer.state === "failed") return failed(answer.refusal, again);
  const words = {
    stopped: () => say("stopped"),
    cut: () => say("cut_reload"),
    length: () => say("length", { count: answer.tokens === null ? "" : number(answer.tokens) }),
    done: () => (answer.text.trim() ? null : say("nothing")),
  }[answer.state]?.();
  return words ? make("div", { class: "notice" }, make("p", {}, words)) : null;
}

function failed(refusal, again) {
  const words = make("p", {}, explained(refusal));
  const button = make(
    "button",
    { type: "button", class: "quiet", onclick: again, disabled: waitOf(refusal) > 0 },
    say(refusal.kind === "key_refused" ? "enter_key" : "try_again"),
  );
  const said = refusal.said ? make("p", { class: "soft" }, say("server_says", { message: refusal.said })) : null;
  const notice = make("div", { class: "notice failed" }, make("div", {}, words, said), button);
  if (waitOf(refusal)) countDown(refusal, words, button);
  return notice;
}

function countDown(refusal, words, button) {
  const timer = setInterval(() => {
    words.textContent = explained(refusal);
    button.disabled = waitOf(refusal) > 0;
    if (!button.disabled || !button.isConnected) clearInterval(timer);
  }, 250);
}
