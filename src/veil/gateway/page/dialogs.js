// Small questions: yes or no, and a line of text. Each is a dialog of the browser's own, so Escape and focus work.

import { make } from "/page/dom.js";

function opened(build) {
  return new Promise((resolve) => {
    const dialog = make("dialog", { class: "small-dialog" });
    const done = (value) => {
      dialog.returnValue = "";
      resolve(value);
      dialog.close();
    };
    dialog.append(build(done));
    dialog.addEventListener("close", () => {
      resolve(null);
      dialog.remove();
    });
    document.body.append(dialog);
    dialog.showModal();
    dialog.querySelector("[autofocus]")?.focus();
  });
}

function form(words, done, value, action, danger, ...middle) {
  const id = "dialog-words";
  return make(
    "form",
    {
      "aria-labelledby": id,
      onsubmit: (event) => {
        event.preventDefault();
        done(value());
      },
    },
    make("p", { id, text: words }),
    ...middle,
    make(
      "div",
      { class: "row" },
      make("button", { type: "button", text: "Cancel", onclick: () => done(null) }),
      make("button", { type: "submit", class: danger ? "primary danger" : "primary", text: action, autofocus: !middle.length }),
    ),
  );
}

// True if it is confirmed.
export const confirmed = (words, action, { danger = true, detail } = {}) =>
  opened((done) => form(words, done, () => true, action, danger, ...(detail ? [make("code", { class: "detail", text: detail }), ] : []))).then(Boolean);

// The text, or null.
export const asked = (words, value, action) =>
  opened((done) => {
    const field = make("input", { type: "text", value, "aria-labelledby": "dialog-words", autofocus: true, maxlength: 200 });
    const made = form(words, done, () => field.value.trim() || null, action, false, field);
    queueMicrotask(() => field.select());
    return made;
  });
