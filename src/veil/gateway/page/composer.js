// The box for a message: its draft, its files, and how much of the model's memory the chat takes.

import * as api from "/page/api.js";
import { read } from "/page/documents.js";
import { $, announce } from "/page/dom.js";
import { attachmentsOf } from "/page/turns.js";

let attachments = [];
let key = "";
let send = () => {};
let sees = () => false;
let changed = () => {};

// `send(text, attachments)` takes a message, `sees()` says whether the model takes pictures, `changed()` hears of writing.
export function bindComposer(given) {
  ({ send, sees, changed } = given);
  const box = $("prompt");
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  box.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    submit();
  });
  box.addEventListener("input", edited);
  box.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (!files.length) return;
    event.preventDefault();
    attach(files);
  });
  $("attach").addEventListener("click", () => $("files").click());
  $("files").addEventListener("change", () => {
    attach([...$("files").files]);
    $("files").value = "";
  });
  document.addEventListener("dragover", (event) => event.dataTransfer.types.includes("Files") && event.preventDefault());
  document.addEventListener("drop", (event) => {
    if (!event.dataTransfer.files.length) return;
    event.preventDefault();
    attach([...event.dataTransfer.files]);
  });
}

function edited() {
  try {
    sessionStorage.setItem(key, $("prompt").value);
  } catch {
    // Without storage a draft lasts as long as the page.
  }
  changed();
}

function submit() {
  const words = $("prompt").value.trim();
  if ((!words && !attachments.length) || $("send").hidden || $("send").disabled) return;
  if (send(words, attachments) === false) return;
  attachments = [];
  showAttachments();
  $("prompt").value = "";
  edited();
}

// What is written now.
export const draft = () => ({ text: $("prompt").value.trim(), written: $("prompt").value, attachments });

// Turn to a chat: its draft comes into the box, that of the chat before stays with it.
export function turnTo(chat, isNew) {
  key = `veil.draft.${isNew ? "new" : chat.id}`;
  $("prompt").value = sessionStorage.getItem(key) ?? "";
  attachments = [];
  showAttachments();
  counting?.abort();
  $("tokens").hidden = true; // they were another chat's
}

// A chat that was new has a name of its own from its first message on.
export function moveTo(chat) {
  sessionStorage.removeItem(key);
  key = `veil.draft.${chat.id}`;
  sessionStorage.setItem(key, $("prompt").value);
}

// Put a message back that was not sent, before whatever is being written by now.
export function giveBack(content, files) {
  const box = $("prompt");
  box.value = [content, box.value].filter(Boolean).join("\n");
  attachments = [...files, ...attachments];
  showAttachments();
  edited();
}

export function put(text) {
  $("prompt").value = text;
  edited();
}

let reading = 0;
async function attach(files) {
  tell("");
  reading += 1;
  for (const file of files) {
    announce(`Reading ${file.name}`);
    try {
      attachments = [...attachments, await read(file, sees())];
      announce(`${file.name} is attached`);
    } catch (error) {
      tell(error.message);
    }
    showAttachments();
  }
  reading -= 1;
  changed();
  $("prompt").focus();
}

function showAttachments() {
  const remove = (one) => {
    attachments = attachments.filter((other) => other !== one);
    showAttachments();
    changed();
    $("prompt").focus();
  };
  $("attached").replaceChildren(...(attachments.length ? [attachmentsOf(attachments, remove)] : []));
}

export const isReading = () => reading > 0;

// A problem in words beside the box; an empty text takes it away.
export function tell(words) {
  $("problem").hidden = !words;
  $("problem-text").textContent = words;
}

// How many tokens the chat has with what is being written. `body()` is what to count, or null.
let counting = null;
let timer = 0;
export function count(body) {
  clearTimeout(timer);
  timer = setTimeout(async () => {
    counting?.abort();
    counting = new AbortController();
    const asked = body();
    const found = asked && (await api.countTokens(asked, counting.signal).catch(() => null));
    const place = $("tokens");
    if (asked && !found) return;
    place.hidden = !found;
    if (!found) return;
    const { count: used, max_model_len: most } = found;
    place.textContent = most < 1 << 20 ? `${used.toLocaleString("en")} / ${most.toLocaleString("en")} tokens` : `${used.toLocaleString("en")} tokens`;
    place.title = "Tokens of this chat, of those that the model can keep in mind";
    place.classList.toggle("full", used > 0.9 * most);
  }, 300);
}
