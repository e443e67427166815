// The settings of the chat that is open: a panel at the side.

import { asked, confirmed } from "/page/dialogs.js";
import { $ } from "/page/dom.js";
import { DEFAULT, EMPTY, preset, presets, removePreset, savePreset } from "/page/settings.js";

const FIELDS = Object.keys(EMPTY).filter((name) => name !== "model");

let chat = null;
let changed = () => {};

// `changed(settings)` hears of new settings of the open chat.
export function bindPanel(given) {
  ({ changed } = given);
  for (const name of FIELDS) {
    field(name).addEventListener("input", () => {
      take({ [name]: field(name).value });
      $("preset").value = "";
    });
  }
  $("preset").addEventListener("change", () => {
    if (!$("preset").value) return;
    const { model, ...settings } = preset($("preset").value);
    take(settings);
    fill();
  });
  $("save-preset").addEventListener("click", async () => {
    const name = await asked("Name of these settings. New chats begin with those called Default.", $("preset").value || DEFAULT, "Save");
    if (name === null) return;
    savePreset(name, chat.settings);
    fillPresets(name);
  });
  $("remove-preset").addEventListener("click", async () => {
    const name = $("preset").value;
    if (!name || !(await confirmed(`Delete the settings “${name}”?`, "Delete"))) return;
    removePreset(name);
    fillPresets("");
  });
  $("close-panel").addEventListener("click", () => toggle(false));
  $("open-panel").addEventListener("click", () => toggle());
}

const field = (name) => $(`set-${name}`);

export function toggle(open = $("panel").hidden) {
  $("panel").hidden = !open;
  $("open-panel").setAttribute("aria-expanded", String(open));
  document.body.classList.toggle("with-panel", open);
  (open ? field("system") : $("open-panel")).focus();
}

export function showPanel(one) {
  chat = one;
  fill();
}

function take(fields) {
  changed({ ...chat.settings, ...fields });
}

function fill() {
  for (const name of FIELDS) if (document.activeElement !== field(name)) field(name).value = chat.settings[name] ?? "";
  const { model, ...mine } = { ...EMPTY, ...chat.settings };
  const same = Object.keys(presets()).find((name) => FIELDS.every((key) => `${preset(name)[key]}` === `${mine[key]}`));
  fillPresets(same ?? "");
}

function fillPresets(chosen) {
  const names = Object.keys(presets());
  $("preset").replaceChildren(new Option("Its own", ""), ...names.map((name) => new Option(name, name)));
  $("preset").value = chosen;
  $("remove-preset").disabled = !chosen;
}
