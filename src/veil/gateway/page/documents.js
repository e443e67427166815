// Files that go with a message: texts, the text of PDFs, and pictures for models that see. All is read here, in the page.

import { newId } from "/page/ids.js";

const MOST_BYTES = 30 << 20;
const MOST_CHARACTERS = 1 << 20;
const MOST_PIXELS = 1024; // along the longer side; models see less

// An attachment. Throws an Error in words for what cannot be read.
export async function read(file, sees) {
  if (file.size > MOST_BYTES) throw new Error(`${file.name} is too large.`);
  if (file.type.startsWith("image/") && file.type !== "image/svg+xml") {
    if (!sees) throw new Error(`This model cannot see pictures, so ${file.name} was left out.`);
    return { id: newId(), name: file.name, kind: "image", data: await picture(file) };
  }
  const bytes = new Uint8Array(await file.arrayBuffer());
  const isPdf = file.type === "application/pdf" || String.fromCharCode(...bytes.slice(0, 5)) === "%PDF-";
  const text = isPdf ? await pdfText(bytes, file.name) : plainText(bytes, file.name);
  if (text.length > MOST_CHARACTERS) throw new Error(`${file.name} has too much text for any model here.`);
  return { id: newId(), name: file.name, kind: "text", text };
}

function plainText(bytes, name) {
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    if (text.includes("\0")) throw new Error();
    return text;
  } catch {
    throw new Error(`${name} is neither text nor a PDF.`);
  }
}

let loading = null;

// pdf.js in a worker of the gateway's own; the policy asks that its address be vouched for.
function pdfjs() {
  loading ??= import("/page/vendor/pdf.min.mjs").then((library) => {
    const policy = window.trustedTypes?.createPolicy("veil", { createScriptURL: (path) => path });
    const path = "/page/vendor/pdf.worker.min.mjs";
    library.GlobalWorkerOptions.workerPort = new Worker(policy ? policy.createScriptURL(path) : path, { type: "module" });
    return library;
  });
  return loading;
}

async function pdfText(bytes, name) {
  const library = await pdfjs();
  const cMaps = { cMapUrl: new URL("/page/vendor/cmaps/", location.href).href, cMapPacked: true }; // Chinese, Japanese, Korean
  const fonts = { disableFontFace: true, useSystemFonts: false };
  const task = library.getDocument({ data: bytes, ...cMaps, ...fonts, stopAtErrors: false, verbosity: 0 });
  let document;
  try {
    document = await task.promise;
  } catch (error) {
    throw new Error(error.name === "PasswordException" ? `${name} is locked with a password.` : `${name} cannot be read as a PDF.`);
  }
  const pages = [];
  for (let number = 1; number <= document.numPages; number += 1) {
    const { items } = await (await document.getPage(number)).getTextContent();
    pages.push(items.map((item) => item.str + (item.hasEOL ? "\n" : "")).join("").trim());
  }
  await task.destroy();
  const text = pages.filter(Boolean).join("\n\n");
  if (!text) throw new Error(`${name} has no text in it; it may be a scan.`);
  return text;
}

async function picture(file) {
  const bitmap = await createImageBitmap(file).catch(() => {
    throw new Error(`${file.name} is no picture that this browser can read.`);
  });
  const scale = Math.min(1, MOST_PIXELS / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/png");
}
