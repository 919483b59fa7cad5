// What a model wrote, as elements. Two locks, since a model can be made to write anything: HTML in an answer is shown
// as the text it is, and whatever marked makes goes through DOMPurify with the few tags that markdown needs. Nothing
// here is loaded from anywhere: images are shown as links.

import { Marked } from "./marked.js";
import DOMPurify from "./purify.js";
import { copy } from "./browser.js";
import { make } from "./element.js";
import { say } from "./words.js";

const ALLOWED = {
  ALLOWED_TAGS: "a blockquote br code del em h1 h2 h3 h4 h5 h6 hr li ol p pre strong table tbody td th thead tr ul".split(" "),
  ALLOWED_ATTR: ["href", "title", "align", "start", "class"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  // Its values are held against the line above, as those of every attribute are that is not named here.
  ADD_URI_SAFE_ATTR: ["align", "start"],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

const escaped = (text) => text.replace(/[&<>"']/g, (letter) => `&#${letter.charCodeAt(0)};`);

const marked = new Marked({
  gfm: true,
  breaks: true,
  renderer: {
    // A line break is the one tag that models write in earnest, in the cells of tables.
    html: ({ text }) => (/^<br\s*\/?>$/i.test(text.trim()) ? "<br>" : escaped(text)),
    image: ({ href, text }) => `<a href="${escaped(href)}">${escaped(say("image", { text: text || href }))}</a>`,
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
  },
  extensions: [
    {
      // CommonMark does not end bold between a Chinese colon and a letter, as in `**注意：**请…`; every reader does.
      name: "bold",
      level: "inline",
      start: (text) => text.indexOf("**"),
      tokenizer(text) {
        const found = /^\*\*(?![\s*])([^*\n]*?[^*\s])\*\*(?!\*)/.exec(text);
        return found ? { type: "strong", raw: found[0], text: found[1], tokens: this.lexer.inlineTokens(found[1]) } : undefined;
      },
    },
  ],
});

/** The text that each block of `element` was made from. */
const sources = new WeakMap();

/**
 * Shows markdown in `element`. Blocks whose text is as before stay as they are, so that a long answer that comes piece
 * by piece is not made anew each time, and what is selected in it stays selected.
 */
export function render(element, text) {
  const tokens = marked.lexer(text);
  const blocks = tokens.filter((token) => token.type !== "space" && token.type !== "def");
  blocks.forEach((block, at) => {
    const there = element.children[at];
    if (there && sources.get(there) === block.raw) return;
    const made = make("div", { class: "block" }, clean(Object.assign([block], { links: tokens.links })));
    sources.set(made, block.raw);
    if (there) there.replaceWith(made);
    else element.append(made);
  });
  while (element.children.length > blocks.length) element.lastElementChild.remove();
}

function clean(tokens) {
  const fragment = DOMPurify.sanitize(marked.parser(tokens), ALLOWED);
  for (const link of fragment.querySelectorAll("a")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
  }
  for (const table of fragment.querySelectorAll("table")) {
    // A wide table scrolls by itself, by keyboard too.
    const frame = make("div", { class: "table", tabindex: 0, role: "group" });
    table.replaceWith(frame);
    frame.append(table);
  }
  for (const block of fragment.querySelectorAll("pre")) block.replaceWith(codeBlock(block));
  return fragment;
}

function codeBlock(block) {
  const code = block.textContent.replace(/\n$/, "");
  const language = /language-([\w+#.-]+)/.exec(block.firstElementChild?.className ?? "")?.[1];
  const button = make(
    "button",
    {
      type: "button",
      class: "quiet",
      onclick: async () => {
        button.textContent = say((await copy(code)) ? "copied" : "not_copied");
        setTimeout(() => (button.textContent = say("copy")), 2000);
      },
    },
    say("copy"),
  );
  return make(
    "div",
    { class: "code" },
    make("div", { class: "code-head" }, make("span", {}, language ?? say("code")), button),
    make("pre", { tabindex: 0 }, make("code", {}, code)),
  );
}
