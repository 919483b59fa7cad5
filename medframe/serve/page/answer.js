// One answer of a model, from the question to its end, whatever that is.

import { complete, Refusal } from "./api.js";

/**
 * An answer, as it is kept: its text so far and its `state`. "waiting" and "coming" while the server is asked; in the
 * end "done", "length" (the limit of tokens), "stopped" (by the person), "cut" (the page was left) or "failed", with
 * the `refusal`. `seconds` is how long it took, `first` when it began, `tokens` what the server counted.
 */
export function begun(model) {
  return { text: "", state: "waiting", model, tokens: null, seconds: null, first: null, refusal: null };
}

/** Whether it is still on its way. */
export function running(answer) {
  return answer.state === "waiting" || answer.state === "coming";
}

/**
 * Fills `answer` with what the server sends, calling `changed` each time, until it has ended; never throws. Where
 * `signal` is aborted, what had come stays.
 */
export async function answerTo(request, answer, signal, changed) {
  const start = performance.now();
  const since = () => (performance.now() - start) / 1000;
  let end = "failed";
  try {
    for await (const { text, finish, usage } of complete(request, signal)) {
      if (text) {
        answer.first ??= since();
        answer.text += text;
        answer.state = "coming";
        answer.seconds = since();
      }
      if (finish) {
        end = finish === "length" ? "length" : "done";
        answer.seconds = since();
      }
      if (usage) answer.tokens = usage.completion_tokens ?? null;
      changed(answer);
    }
  } catch (error) {
    if (error.name === "AbortError") end = "stopped";
    else answer.refusal = error instanceof Refusal ? error.kept : { kind: "broken", said: String(error), until: 0 };
    answer.seconds = since();
  }
  answer.state = end;
  changed(answer);
}

/** An answer read from where it was kept: one that was on its way when the page was left is cut. */
export function afterReload(answer) {
  if (running(answer)) answer.state = "cut";
  return answer;
}
