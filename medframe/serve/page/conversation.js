// A conversation: a tree, since a question can be asked otherwise and an answer be given again, and nothing is lost.
//
// Each turn names the one before it (`after`, "" at the beginning). Of several that follow the same turn, one is
// shown; the turns shown, from the beginning on, are the conversation as it is read and sent.

import { fresh } from "./browser.js";

/** An empty conversation. */
export function conversation() {
  const now = Date.now();
  return { id: fresh(), title: "", created: now, updated: now, model: "", turns: [], shown: {} };
}

/** Adds a turn after `after` (a turn, or null at the beginning) and shows it. */
export function add(talk, after, turn) {
  const added = { id: fresh(), after: after?.id ?? "", ...turn };
  talk.turns.push(added);
  talk.shown[added.after] = added.id;
  talk.updated = Date.now();
  if (!talk.title && turn.role === "user") talk.title = named(turn.text);
  return added;
}

/** The turns that are shown, in order. */
export function path(talk) {
  const turns = [];
  for (let turn = following(talk, ""); turn; turn = following(talk, turn.id)) turns.push(turn);
  return turns;
}

/** All that stand in the same place as `turn`, itself among them, oldest first. */
export function versions(talk, turn) {
  return talk.turns.filter((each) => each.after === turn.after);
}

/** Shows this one of the versions of its place. */
export function show(talk, turn) {
  talk.shown[turn.after] = turn.id;
}

/** Takes out a turn that nothing follows, such as an answer that never came. */
export function drop(talk, turn) {
  talk.turns.splice(talk.turns.indexOf(turn), 1);
  delete talk.shown[turn.after];
}

/** The turn before this one, or null. */
export function before(talk, turn) {
  return talk.turns.find((each) => each.id === turn.after) ?? null;
}

/**
 * The messages that ask this question: the rounds before it where the model takes several, those that have an answer,
 * and the system turn where its format has one.
 */
export function messages(talk, question, { multiTurn, system }) {
  const asked = [{ role: "user", content: question.text }];
  if (multiTurn) {
    for (let answer = before(talk, question); answer; ) {
      const itsQuestion = before(talk, answer);
      if (answer.text) asked.unshift({ role: "user", content: itsQuestion.text }, { role: "assistant", content: answer.text });
      answer = before(talk, itsQuestion);
    }
  }
  return system ? [{ role: "system", content: system }, ...asked] : asked;
}

/** As it is exported: `messages` is the conversation as shown, in the form that `medframe generate` and training read. */
export function exported(talk) {
  const said = path(talk).map(({ role, text }) => ({ role, content: text }));
  return { title: talk.title, created: new Date(talk.created).toISOString(), messages: said, turns: talk.turns };
}

function following(talk, id) {
  const here = talk.turns.filter((turn) => turn.after === id);
  return here.find((turn) => turn.id === talk.shown[id]) ?? here.at(-1);
}

function named(text) {
  const line = text.trim().replace(/\s+/g, " ");
  const letters = Array.from(line);
  return letters.length > 60 ? `${letters.slice(0, 60).join("")}…` : line;
}
