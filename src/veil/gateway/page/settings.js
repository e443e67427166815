// The settings dialog and the appearance.

import { apiKey } from "/page/api.js";
import { removeAll, saveSettings, settings } from "/page/chats.js";

const $ = (id) => document.getElementById(id);

// Tell the page when colours changed, a key was given, or all chats were deleted.
export function bindSettings({ themed, connected, forgotten }) {
  const dialog = $("settings");
  const dark = matchMedia("(prefers-color-scheme: dark)");

  const appear = () => {
    document.documentElement.dataset.theme = settings.appearance;
    $("appearance").value = settings.appearance;
    themed();
  };
  const fill = () => {
    $("system").value = settings.system;
    $("temperature").value = settings.temperature;
    $("top-p").value = settings.topP;
    $("max-tokens").value = settings.maxTokens;
    $("seed").value = settings.seed;
    $("api-key").value = apiKey();
    show();
  };
  const show = () => {
    $("temperature-shown").value = Number($("temperature").value).toFixed(1);
    $("top-p-shown").value = Number($("top-p").value).toFixed(2);
  };
  const take = () => {
    settings.model = $("model").value || settings.model;
    settings.system = $("system").value;
    settings.temperature = Number($("temperature").value);
    settings.topP = Number($("top-p").value);
    settings.maxTokens = Math.max(1, Math.round(Number($("max-tokens").value)) || 512);
    settings.seed = $("seed").value === "" ? "" : Math.round(Number($("seed").value));
    settings.appearance = $("appearance").value;
    saveSettings();
    show();
  };

  $("open-settings").addEventListener("click", () => {
    fill();
    dialog.showModal();
  });
  dialog.addEventListener("input", () => {
    take();
    appear();
  });
  dialog.addEventListener("close", () => {
    if (apiKey() !== $("api-key").value) {
      apiKey($("api-key").value);
      connected();
    }
  });
  $("theme").addEventListener("click", () => {
    const now = settings.appearance === "auto" ? (dark.matches ? "dark" : "light") : settings.appearance;
    settings.appearance = now === "dark" ? "light" : "dark";
    saveSettings();
    appear();
  });
  $("forget").addEventListener("click", () => {
    if (!confirm("Delete all chats? They are kept nowhere else.")) return;
    removeAll();
    dialog.close();
    forgotten();
  });
  dark.addEventListener("change", themed);
  fill();
  appear();
}
