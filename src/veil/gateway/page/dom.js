// Elements and icons.

// An element: attributes by name, `class`, `text`, listeners as `onclick` and the like; then what is in it.
export function make(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (key === "text") made.textContent = value;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key === "value") made.value = value;
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export const $ = (id) => document.getElementById(id);

const PATHS = {
  menu: "M3 5h14M3 10h14M3 15h14",
  plus: "M10 4v12M4 10h12",
  search: "M9 3.5a5.5 5.5 0 1 1 0 11a5.5 5.5 0 0 1 0-11M13 13l4 4",
  pencil: "M4 16l.8-3.4L13.4 4l2.6 2.6-8.6 8.6zM11.6 5.8l2.6 2.6",
  bin: "M4 6h12M8 6V4h4v2M5.5 6l.7 10.5h7.6L14.5 6M8.5 9v5M11.5 9v5",
  copy: "M7 7h9v9H7zM13 7V4H4v9h3",
  check: "M4 10.5l4 4 8-9",
  again: "M15.5 8A6 6 0 1 0 16 11M16 4v4h-4",
  on: "M4 4l6 6-6 6M10 4l6 6-6 6",
  left: "M12 5l-5 5 5 5",
  right: "M8 5l5 5-5 5",
  close: "M5 5l10 10M15 5L5 15",
  clip: "M14.5 9.5l-5 5a3.2 3.2 0 0 1-4.5-4.5l6-6a2.1 2.1 0 0 1 3 3l-5.8 5.8a1 1 0 0 1-1.4-1.4l5-5",
  up: "M10 16V4M5 9l5-5 5 5",
  down: "M10 4v12M5 11l5 5 5-5",
  save: "M10 3v9M6 8l4 4 4-4M4 16h12",
  stop: "M6 6h8v8H6z",
  sliders: "M3 6h7M14 6h3M3 14h3M10 14h7M12 4v4M8 12v4",
  more: "M5 10h.01M10 10h.01M15 10h.01",
  file: "M5 3h6l4 4v10H5zM11 3v4h4",
  shield: "M10 3l6 2v5c0 3.5-2.5 6-6 7-3.5-1-6-3.5-6-7V5z",
  tool: "M12.5 4a4 4 0 0 0-4 5.2L4 13.7 6.3 16l4.5-4.5A4 4 0 0 0 16 7.5l-2.3 1.3-1.7-.5-.5-1.7z",
  gear: "M10 7.5a2.5 2.5 0 1 1 0 5a2.5 2.5 0 0 1 0-5M10 3v2M10 15v2M3 10h2M15 10h2M5 5l1.5 1.5M13.5 13.5L15 15M15 5l-1.5 1.5M6.5 13.5L5 15",
};

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  for (const [key, value] of [["viewBox", "0 0 20 20"], ["width", 18], ["height", 18], ["aria-hidden", "true"], ["class", "icon"]]) {
    svg.setAttribute(key, value);
  }
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

// A button that is an icon; its name is for those who hear it and for the pointer that rests on it.
export function iconButton(name, label, act, attributes = {}) {
  return make("button", { type: "button", class: "bare", "aria-label": label, title: label, onclick: act, ...attributes }, icon(name));
}

// Fill the page's own icons: <span data-icon="menu">.
export function drawIcons() {
  for (const place of document.querySelectorAll("[data-icon]")) place.replaceWith(icon(place.dataset.icon));
}

// Say something to those who listen to the page.
export function announce(text) {
  $("announce").textContent = text;
}

// Put text on the clipboard; plain HTTP has only the older way.
export async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text).then(() => true, () => false);
  const field = make("textarea", { class: "unseen", text });
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  return done;
}

export function copyButton(textOf, label = "Copy") {
  const button = iconButton("copy", label, async () => {
    const done = await copyText(textOf());
    button.replaceChildren(icon(done ? "check" : "close"));
    announce(done ? "Copied" : "It could not be copied");
    setTimeout(() => button.replaceChildren(icon("copy")), 1500);
  });
  return button;
}

export function size(bytes) {
  if (bytes < 1000) return `${bytes} B`;
  return bytes < 1e6 ? `${(bytes / 1e3).toFixed(0)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}
