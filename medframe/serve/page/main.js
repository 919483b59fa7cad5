// The page: asks the server what it serves, and puts the parts together.

import { settings } from "./api.js";
import { Chat } from "./chat.js";
import { Compare } from "./compare.js";
import { icon } from "./element.js";
import { askKey, key } from "./key.js";
import { explained } from "./notice.js";
import * as options from "./options.js";
import { refresh } from "./served.js";
import * as side from "./side.js";
import { listeners, load } from "./store.js";
import * as strips from "./strips.js";
import * as tabs from "./tabs.js";
import * as theme from "./theme.js";
import { fill, ofBoth, say, switchLanguage } from "./words.js";

let told = { title: "medframe", disclaimer: {}, key_needed: false, tiny: false };

fill();
theme.begin();
side.begin();
load();
const chat = new Chat();
const compare = new Compare();

document.getElementById("open-side").append(icon("menu"));
document.getElementById("open-options").append(icon("options"));
document.getElementById("language").addEventListener("click", () => {
  switchLanguage();
  renderAll();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.isComposing || document.querySelector("dialog[open]")) return;
  if (!side.closeSide()) (tabs.view() === "chat" ? chat : compare).stop();
});
listeners.unkept = () => strips.strip("unkept", () => say("unkept"), { urgent: true });
options.begin(() => document.getElementById(tabs.view() === "chat" ? "model" : "right").value);
tabs.begin((view) => view === "compare" && compare.render());
renderAll();
begin();

async function begin() {
  try {
    told = await settings();
    options.limit(told.max_tokens);
    renderAll();
    if (told.key_needed && !key()) await askKey();
    await refresh();
    strips.unstrip("gone");
  } catch (refusal) {
    const words = () => `${say("no_models")} ${refusal.kind ? explained(refusal) : refusal.message}`;
    strips.strip("gone", words, { urgent: true, again: begin });
  }
  renderAll();
}

function renderAll() {
  document.title = told.title;
  document.getElementById("title").textContent = told.title;
  document.getElementById("language").textContent = say("other_language_short");
  for (const place of document.querySelectorAll(".disclaimer")) place.textContent = ofBoth(told.disclaimer);
  if (told.tiny) strips.strip("tiny", () => say("tiny"));
  theme.render();
  strips.render();
  chat.offerModels();
  chat.render();
  compare.offerModels();
}
