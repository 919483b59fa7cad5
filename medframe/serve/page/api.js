// What the page asks of its server. Addresses are relative: the page may lie behind a proxy that puts it elsewhere.

import { events } from "./events.js";
import { askKey, key } from "./key.js";

/** Why there is no answer: `kind` is one of the page's words, `message` what the server itself said. */
export class Refusal extends Error {
  constructor(kind, message = "", seconds = 0) {
    super(message || kind);
    this.kind = kind;
    this.said = message;
    /** When it may be tried again, in milliseconds since 1970. */
    this.until = seconds ? Date.now() + 1000 * seconds : 0;
  }

  /** As it is kept with an answer. */
  get kept() {
    return { kind: this.kind, said: this.said, until: this.until };
  }
}

/** What the server says of the page: title, key_needed, disclaimer, tiny, max_tokens. */
export async function settings() {
  return (await send("page/settings")).json();
}

/** The models, each with what medframe says of it under `medframe`. */
export async function models() {
  return (await (await send("v1/models")).json()).data;
}

/**
 * Asks for an answer and yields it as it comes: `{text}` pieces, then `{finish: "stop" | "length"}` and perhaps
 * `{usage}`. Throws a Refusal where there is none or it breaks off, and an AbortError where `signal` says so, which
 * also frees the server's place.
 */
export async function* complete(request, signal) {
  const body = JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true } });
  const response = await send("v1/chat/completions", { method: "POST", body, signal });
  let finished = false;
  try {
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw refusal(500, chunk.error);
      const choice = chunk.choices?.[0];
      if (choice?.delta?.content) yield { text: choice.delta.content };
      if (choice?.finish_reason) {
        finished = true;
        yield { finish: choice.finish_reason };
      }
      if (chunk.usage) yield { usage: chunk.usage };
    }
  } catch (error) {
    if (error instanceof Refusal || error.name === "AbortError") throw error;
    throw new Refusal("cut_connection");
  }
  if (!finished) throw new Refusal("cut_connection");
}

async function send(path, options = {}) {
  for (;;) {
    const sent = key();
    const headers = { "Content-Type": "application/json" };
    if (sent) headers.Authorization = `Bearer ${sent}`;
    let response;
    try {
      response = await fetch(path, { ...options, headers, cache: "no-store" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refusal("gone");
    }
    if (response.ok) return response;
    // Another request may have been given a key meanwhile: that one is tried before the person is asked.
    if (response.status === 401 && (key() !== sent || (await askKey()))) continue;
    const said = await response.json().catch(() => ({}));
    throw refusal(response.status, said.error ?? {}, Number(response.headers.get("Retry-After")));
  }
}

function refusal(status, { message = "", code = "" }, seconds = 0) {
  if (code === "context_length_exceeded" || status === 413) return new Refusal("too_long", message);
  if (status === 401 || status === 403) return new Refusal("key_refused", message);
  if (status === 404) return new Refusal("model_gone", message);
  if (status === 429) return new Refusal("busy", message, seconds || 1);
  if (status === 502 || status === 503) return new Refusal("unready", message, seconds);
  return new Refusal(status >= 500 ? "broken" : "refused", message);
}
