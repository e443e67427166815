// The page's own settings: appearance, the gateway's key, and all chats as a file.

import { apiKey } from "/page/api.js";
import * as chats from "/page/chats.js";
import { confirmed } from "/page/dialogs.js";
import { $ } from "/page/dom.js";
import { redrawStrips } from "/page/saw.js";
import { appearance, eager } from "/page/settings.js";
import { now } from "/page/status.js";
import { download, fromFile, toJson } from "/page/transfer.js";

// `connected()` when a key was given, `replaced()` when chats were imported or all deleted, `told(words)` for problems.
export function bindPreferences({ connected, replaced, told }) {
  const dialog = $("settings");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const appear = () => {
    document.documentElement.dataset.theme = appearance();
    $("appearance").value = appearance();
    redrawStrips();
  };
  $("open-settings").addEventListener("click", open);
  $("appearance").addEventListener("change", () => {
    appearance($("appearance").value);
    appear();
  });
  dialog.addEventListener("close", () => {
    if (apiKey() === $("api-key").value) return;
    apiKey($("api-key").value);
    connected();
  });
  $("eager").addEventListener("change", () => eager($("eager").checked));
  $("export-all").addEventListener("click", async () => download("veil-chats.json", toJson(await chats.everything()), "application/json"));
  $("import").addEventListener("click", () => $("import-file").click());
  $("import-file").addEventListener("change", async () => {
    const [file] = $("import-file").files;
    $("import-file").value = "";
    if (!file) return;
    dialog.close();
    try {
      const found = fromFile(await file.text(), file.name);
      await chats.add(found);
      replaced(found[0]?.id);
    } catch (error) {
      told(error.message);
    }
  });
  $("forget").addEventListener("click", async () => {
    if (!(await confirmed("Delete all chats? They are kept nowhere else.", "Delete all"))) return;
    await chats.removeAll();
    dialog.close();
    replaced();
  });
  dark.addEventListener("change", redrawStrips);
  window.addEventListener("resize", redrawStrips);
  appear();
}

export function open() {
  $("api-key").value = apiKey();
  $("eager-choice").hidden = !now()?.eager;
  $("eager").checked = eager();
  $("settings").showModal();
}
