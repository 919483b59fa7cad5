// The models that are served, and how a person chooses one.

import { models } from "./api.js";
import { make } from "./element.js";
import { say } from "./words.js";

/** What the server said last. */
let list = [];

/** Asks the server for its models anew; throws a Refusal. */
export async function refresh() {
  list = await models();
  return list;
}

/** All models. */
export function served() {
  return list;
}

/** The model of that id, or undefined. */
export function modelOf(id) {
  return list.find((model) => model.id === id);
}

/** Two models to be compared: a base and what was trained on it where there are, else the first and the last. */
export function pair() {
  const base = list.find((model) => model.medframe?.of && modelOf(model.medframe.of));
  return base ? [base.id, base.medframe.of] : [list[0]?.id, list.at(-1)?.id];
}

/** A model as it is called: "consult", or "base · consult-base". */
export function called(id) {
  const model = modelOf(id);
  return model?.medframe?.kind === "base" ? `${say("base_model")} · ${id}` : (id ?? "");
}

/** What a person should know of its format, in few words. */
export function formatOf(model) {
  if (!model?.medframe) return "";
  const { format, multi_turn: several } = model.medframe;
  return `${format} · ${say(several ? "multi_turn" : "single_turn")}`;
}

/** Fills a select with the models and chooses `chosen`, or what was chosen, or the first that is not a base. */
export function offer(select, chosen) {
  const wanted = [chosen, select.value].find((id) => modelOf(id));
  const usual = list.find((model) => model.medframe?.kind !== "base") ?? list[0];
  select.replaceChildren(...list.map((model) => make("option", { value: model.id }, called(model.id))));
  if (!list.length) select.append(make("option", { value: "" }, say("no_model")));
  select.value = wanted ?? usual?.id ?? "";
  select.disabled = !list.length;
}
