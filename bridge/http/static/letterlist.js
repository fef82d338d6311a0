// Dead letters: what was refused, why, and what can be done with it.

import * as api from "./api.js";
import { fill, h } from "./dom.js";
import { ago, count } from "./format.js";
import { me } from "./me.js";
import { shape } from "./status.js";
import { sureButton } from "./surebutton.js";
import { toast } from "./toast.js";

const BECAME = {
  committed: ["Replayed: it is committed now.", "ok"],
  deduplicated: ["It had been committed before; the letter is gone.", "ok"],
  dead_lettered: ["It was refused again: there is a new letter with the reason.", "bad"],
};

/** A list of `letters`; `refresh` is called when one is gone. `chosen`, a set of ids, makes them selectable. */
export function letterList(letters, scope, refresh, { device = true, chosen = null, onchoose = () => {} } = {}) {
  if (!letters.length) return h("p", { class: "soft" }, "None: nothing was refused.");
  return h("ol", { class: "letters" }, letters.map((letter) => entry(letter, scope, refresh, device, chosen, onchoose)));
}

function entry(letter, scope, refresh, device, chosen, onchoose) {
  const body = h("div", {});
  const details = h(
    "details",
    { ontoggle: () => details.open && scope.attempt(open) },
    h(
      "summary",
      {},
      shape("dead_letter"),
      h("b", {}, letter.reason.replaceAll("_", " ")),
      device && letter.device_id && h("a", { class: "id", href: `#/devices/${api.part(letter.device_id)}` }, letter.device_id),
      h("span", { class: "clip soft" }, letter.error),
      ago(letter.at),
    ),
    body,
  );

  async function open() {
    const whole = await api.get(`/dead-letters/${letter.id}`, {}, scope.signal);
    fill(
      body,
      h("dl", { class: "facts-line" }, [["Topic", h("code", {}, whole.topic)], ["Received", new Date(whole.at).toLocaleString()], ["Size", `${count(whole.size)} bytes`]].map(([title, what]) => h("div", {}, h("dt", {}, title), h("dd", {}, what)))),
      h("p", { class: "trouble" }, whole.error),
      h("pre", {}, whole.payload),
      me.may("operator") &&
        h(
          "div",
          { class: "buttons" },
          h("button", { onclick: () => act("POST", `/dead-letters/${letter.id}/replay`) }, "Replay"),
          sureButton("Drop", "Drop it for good?", () => act("DELETE", `/dead-letters/${letter.id}`)),
        ),
    );
  }

  const act = (method, path) =>
    scope.act(async () => {
      const { data } = await api.request(method, path, { signal: scope.signal, patience: 40_000 });
      toast(...(BECAME[data?.outcome] ?? ["The letter is dropped.", "ok"]));
      await refresh();
    });

  const box = chosen && h("input", { type: "checkbox", "aria-label": `Choose letter ${letter.id}`, checked: chosen.has(letter.id), onchange: () => (box.checked ? chosen.add(letter.id) : chosen.delete(letter.id), onchoose()) });
  return h("li", { "data-letter": letter.id }, box, details);
}
