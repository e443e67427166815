// While a message is written its finished words go up, one request after another; what comes too late is simply sent later.

import * as api from "/page/api.js";

let flying = null; // { key, stop }
let last = "";
let latest = () => null;

export const isPreparing = () => flying !== null;

// Have the gateway compute what `wanted()` says by now: a request, or null for nothing.
export async function prepare(wanted) {
  latest = wanted;
  const body = safely(wanted);
  const key = body ? JSON.stringify(body.messages) : "";
  if (!body || key === last) return;
  if (flying) {
    if (!goesOn(flying.key, key)) flying.stop.abort();
    return;
  }
  flying = { key, stop: new AbortController() };
  last = key;
  document.body.dataset.preparing = "";
  await api.prefill(body, flying.stop.signal).catch(() => {});
  flying = null;
  delete document.body.dataset.preparing;
  await prepare(latest);
}

// Whether a text is the other one with more behind it; both end in the same marks of JSON.
const goesOn = (before, after) => after.startsWith(before.replace(/["}\]]*$/, ""));

function safely(wanted) {
  try {
    return wanted();
  } catch {
    return null; // settings that say nothing sensible yet
  }
}
