// Code in answers: its language, colours, and a button that copies it.

import { copyButton, iconButton, make } from "/page/dom.js";
import { download } from "/page/transfer.js";
import hljs from "/page/vendor/highlight.min.js";
import DOMPurify from "/page/vendor/purify.es.mjs";

const MOST_COLOURED = 60_000;
const ENDINGS = { python: "py", javascript: "js", typescript: "ts", bash: "sh", shell: "sh", rust: "rs", ruby: "rb", markdown: "md", plaintext: "txt", csharp: "cs", kotlin: "kt", perl: "pl" };

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
    const ending = ENDINGS[name] ?? (/^[a-z]{1,5}$/.test(name) ? name : "txt");
    const save = iconButton("save", "Save code", () => download(`code.${ending}`, source, "text/plain"));
    const tools = make("span", { class: "code-tools" }, save, copyButton(() => source, "Copy code"));
    const head = make("div", { class: "code-head" }, make("span", { text: name || "text" }), tools);
    const frame = make("div", { class: "code" }, head);
    pre.replaceWith(frame);
    pre.tabIndex = 0;
    pre.setAttribute("role", "group");
    pre.setAttribute("aria-label", name ? `Code in ${name}` : "Code");
    frame.append(pre);
  }
}
