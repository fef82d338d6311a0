// A secret that is shown this once.

import { fill, h } from "./dom.js";
import { labelled } from "./sendform.js";

export function showOnce(box, title, secret) {
  const shown = h("input", { id: "secret", readonly: true, value: secret, onfocus: (event) => event.target.select() });
  fill(box, h("div", { class: "preview" }, labelled(title, shown, "copy it now: it is shown this once, and stored only as a digest")));
  shown.focus();
}
