// The page's words, in Chinese or English: what the browser prefers, until the other is chosen.

import { keep, recall } from "./browser.js";
import { en } from "./words-en.js";
import { zh } from "./words-zh.js";

const TABLES = { zh, en };

/** "zh" or "en". */
export let language = recall("language") ?? (/^zh\b/i.test(navigator.language) ? "zh" : "en");

/** The words under `key`; those that depend on something are given it in `values`. */
export function say(key, values = {}) {
  const words = TABLES[language][key];
  return typeof words === "function" ? words(values) : words;
}

/** A text given in both languages, `{zh, en}`, as it is in this one, or in the other where this one is missing. */
export function ofBoth(texts) {
  return texts?.[language] || texts?.zh || texts?.en || "";
}

/** Chooses the other language and keeps it; what was made by script is the caller's to make again. */
export function switchLanguage() {
  language = language === "zh" ? "en" : "zh";
  keep("language", language);
  fill();
}

/** Fills in all that is marked in the document: `data-word` the text, `data-label` the name, `data-placeholder`. */
export function fill(root = document) {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const element of root.querySelectorAll("[data-word]")) element.textContent = say(element.dataset.word);
  for (const element of root.querySelectorAll("[data-label]")) {
    element.setAttribute("aria-label", say(element.dataset.label));
    if (element.matches("button")) element.title = say(element.dataset.label);
  }
  for (const element of root.querySelectorAll("[data-placeholder]")) element.placeholder = say(element.dataset.placeholder);
}

/** In what language a text is, for the fonts and voices that depend on it: Chinese where it has a Chinese character. */
export function languageOf(text) {
  return /\p{Script=Han}/u.test(text) ? "zh-CN" : "en";
}

/** A number as it is written here, with so many digits after the point. */
export function number(value, digits = 0) {
  return value.toLocaleString(language === "zh" ? "zh-CN" : "en-GB", {
    minimumFractionDigits: digits,
    maximumFractionDigits: digits,
  });
}
