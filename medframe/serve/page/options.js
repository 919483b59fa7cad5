// How answers are drawn: what the person sets here is sent, what is left empty is the model's own.

import { keep, recall } from "./browser.js";
import { make } from "./element.js";
import { hold, key } from "./key.js";
import { modelOf } from "./served.js";
import { say } from "./words.js";

const NUMBERS = [
  { name: "temperature", min: 0, max: 2, step: 0.05, own: "temperature" },
  { name: "top_p", min: 0.01, max: 1, step: 0.01, own: "top_p" },
  { name: "max_tokens", min: 1, step: 1, own: "max_new_tokens" },
  { name: "seed", min: 0, max: 2147483647, step: 1, own: "seed" },
];
const dialog = document.getElementById("options");
const fields = dialog.querySelector(".fields");
const keyPart = document.getElementById("key-part");
let most;

/** What is sent with each request: only what was set. */
export function sampling() {
  const { system: _, ...set } = chosen();
  return set;
}

/** The system turn to be sent to this model, or "" where there is none or its format has no place for it. */
export function systemFor(model) {
  return model.medframe?.system === "optional" ? (chosen().system ?? "") : "";
}

/** No answer may be longer: so many tokens, as the server says. */
export function limit(tokens) {
  most = tokens;
}

/** Makes ready the dialog; `current()` is the id of the model in view, whose own settings are shown where none is set. */
export function begin(current) {
  document.getElementById("open-options").addEventListener("click", () => {
    draw(modelOf(current()));
    dialog.showModal();
  });
  document.getElementById("reset-options").addEventListener("click", () => {
    keep("options", null);
    draw(modelOf(current()));
  });
  document.getElementById("forget-key").addEventListener("click", () => {
    hold("");
    keyPart.hidden = true;
  });
}

function chosen() {
  return recall("options") ?? {};
}

function set(name, value) {
  const { [name]: _, ...others } = chosen();
  keep("options", value === "" ? others : { ...others, [name]: value });
}

function draw(model) {
  fields.replaceChildren(...NUMBERS.map((each) => numberField(each, model)), systemField(model));
  keyPart.hidden = !key();
}

function numberField({ name, min, max, step, own }, model) {
  const input = make("input", {
    id: `option-${name}`,
    type: "number",
    inputmode: "decimal",
    min,
    max: name === "max_tokens" ? most : max,
    step,
    value: chosen()[name],
    placeholder: model?.medframe?.decoding?.[own] ?? "",
    "aria-describedby": `meaning-${name}`,
    oninput: () => input.checkValidity() && set(name, input.value === "" ? "" : Number(input.value)),
    // What is not valid was not kept, and is not left standing as if it were.
    onchange: () => input.checkValidity() || (input.value = chosen()[name] ?? ""),
  });
  return field(input, name, say(`${name}_meaning`, { most }));
}

function systemField(model) {
  const place = model?.medframe?.system ?? "optional";
  const input = make("textarea", { id: "option-system", rows: 3, "aria-describedby": "meaning-system", disabled: place !== "optional" });
  input.value = chosen().system ?? "";
  input.addEventListener("input", () => set("system", input.value.trim()));
  return field(input, "system", say(`system_${place}`, { model: model?.id }));
}

function field(input, name, meaning) {
  return make(
    "div",
    { class: input.matches("textarea") ? "field whole" : "field" },
    make("label", { for: input.id }, say(name)),
    input,
    make("small", { id: `meaning-${name}`, class: "soft" }, meaning),
  );
}
