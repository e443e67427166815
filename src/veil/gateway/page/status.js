// How the machine behind the page is: asked every few seconds, each second while something is written.

import * as answering from "/page/answering.js";
import * as api from "/page/api.js";
import { $ } from "/page/dom.js";
import { isPreparing } from "/page/eager.js";

let timer = 0;
let last = null;
let heard = () => {};
let modelOf = () => "";

export const now = () => last;

// `heard(status)` is called with every new state, `model()` names the one that the chat uses.
export function bindStatus(given) {
  ({ heard, model: modelOf } = given);
  document.addEventListener("visibilitychange", () => document.hidden || look());
}

export async function look() {
  clearTimeout(timer);
  try {
    last = await api.status(modelOf());
    const [state, words] = stateOf(last);
    show(state, words, aboutOf(last));
  } catch (error) {
    last = null;
    if (error.status === 401) show("down", "API key needed", "Give the gateway's API key in the settings.");
    else if (error.status) show("down", "Not available", error.message);
    else show("down", "Gateway not reached", error.message);
  }
  heard(last);
  const often = answering.anyRunning() || last === null || last.server_lost_s !== null;
  if (!document.hidden) timer = setTimeout(look, often ? 1000 : 3000);
}

function show(state, words, about) {
  $("status").title = about;
  $("dot").dataset.state = state;
  if ($("status-text").textContent !== words) $("status-text").textContent = words;
}

function stateOf(status) {
  if (status.server_lost_s !== null) return ["down", "Server not reached"];
  if (status.waiting) return ["busy", `Busy, ${status.waiting} waiting`];
  if (!status.running) return ["ready", "Ready"];
  return ["busy", answering.anyRunning() ? "Writing" : isPreparing() ? "Getting ready" : "Busy"];
}

function aboutOf(status) {
  const where = status.server ? `${status.model} on ${status.server}` : `${status.model} in the gateway itself`;
  const safe = status.security_bits ? `encrypted with ${status.security_bits} bits` : "not encrypted for real";
  if (!status.server) return `${where}, ${safe}`;
  return `${where}, ${safe}, its answers ${status.checked ? `checked against ${status.checked}` : "not checked"}`;
}
