// Code in answers: its language, colours, and a button that copies it.

import { copyButton, make } from "/page/dom.js";
import hljs from "/page/vendor/highlight.min.js";
import DOMPurify from "/page/vendor/purify.es.mjs";

const MOST_COLOURED = 60_000;

export function decorateCode(node) {
  for (const pre of node.querySelectorAll("pre")) {
    const code = pre.querySelector("code") ?? pre;
    const source = code.textContent;
    const name = /language-([\w+#-]+)/.exec(code.className)?.[1] ?? "";
    const known = hljs.getLanguage(name);
    if (known && source.length < MOST_COLOURED) {
      const coloured = hljs.highlight(source, { language: name, ignoreIllegals: true }).value;
      code.replaceChildren(DOMPurify.sanitize(coloured, { RETURN_DOM_FRAGMENT: true, ALLOWED_TAGS: ["span"], ALLOWED_ATTR: ["class"] }));
    }
    const head = make("div", { class: "code-head" }, make("span", { text: name || "text" }), copyButton(() => source, "Copy code"));
    const frame = make("div", { class: "code" }, head);
    pre.replaceWith(frame);
    pre.tabIndex = 0;
    pre.setAttribute("role", "group");
    pre.setAttribute("aria-label", name ? `Code in ${name}` : "Code");
    frame.append(pre);
  }
}
