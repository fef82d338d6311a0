// Short notes about what has just been done.

import { h } from "./dom.js";
import { shape } from "./status.js";

const SHAPES = { ok: "succeeded", bad: "failed", info: "sent" };
const SHOWN = 6_000;

export function toast(text, tone = "info") {
  const note = h("div", { class: `toast ${tone}` }, shape(SHAPES[tone]), text);
  document.getElementById("toasts").append(note);
  setTimeout(() => note.remove(), SHOWN);
}
