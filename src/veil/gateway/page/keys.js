// Keyboard shortcuts, and the list of them that Ctrl+/ shows.

import { $, make } from "/page/dom.js";

const isMac = /Mac|iPhone|iPad/.test(navigator.userAgent);
const CONTROL = isMac ? "⌘" : "Ctrl";

const LIST = [
  ["Enter", "send"],
  ["Shift+Enter", "new line"],
  ["Esc", "stop the answer"],
  ["Alt+N", "new chat"],
  [`${CONTROL}+K`, "search chats"],
  ["Alt+↑ / Alt+↓", "chat above / below"],
  ["/", "to the message box"],
  ["↑", "edit the last message (in an empty box)"],
  ["Alt+C", "copy the last answer"],
  ["Alt+R", "try again"],
  ["Alt+S", "settings of this chat"],
  [`${CONTROL}+/`, "this list"],
];

// `acts` has a function for each of: stop, newChat, search, step(±1), focus, editLast, copyLast, again, panel.
export function bindKeys(acts) {
  $("keys").replaceChildren(...LIST.flatMap(([keys, what]) => [make("dt", {}, make("kbd", { text: keys })), make("dd", { text: what })]));
  const withAlt = { KeyN: acts.newChat, KeyC: acts.copyLast, KeyR: acts.again, KeyS: acts.panel, ArrowUp: () => acts.step(-1), ArrowDown: () => acts.step(1) };
  document.addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]")) return;
    const writing = event.target.closest?.("input, textarea, select");
    const control = isMac ? event.metaKey : event.ctrlKey;
    const act =
      (event.key === "Escape" && acts.stop) ||
      (control && event.key.toLowerCase() === "k" && acts.search) ||
      (control && event.key === "/" && (() => $("shortcuts").showModal())) ||
      (event.altKey && !event.ctrlKey && withAlt[event.code]) ||
      (event.key === "/" && !writing && !control && acts.focus) ||
      (event.key === "ArrowUp" && event.target === $("prompt") && !$("prompt").value && acts.editLast);
    if (!act) return;
    event.preventDefault();
    act();
  });
}
