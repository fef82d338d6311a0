// Dead letters: read, replay, drop.

import * as api from "../api.js";
import { busy, fill, h, settled } from "../dom.js";
import { count } from "../format.js";
import { letterList } from "../letterlist.js";
import { me } from "../me.js";
import { toast } from "../toast.js";

const ROWS = 50;

export function letters(main, scope) {
  const wanted = { reason: scope.query.get("reason") ?? "", device: scope.query.get("device") ?? "" };
  const chosen = new Set();
  let shown = [];
  let next = null;

  const list = h("div", { class: "card" });
  const more = h("button", { class: "quiet", hidden: true, onclick: () => scope.attempt(older) }, "Show earlier ones");
  const all = h("button", { onclick: chooseAll }, "Choose all shown");
  const replay = h("button", { class: "primary", disabled: true, onclick: () => scope.attempt(replayChosen, tell) }, "Replay");
  const arrived = h("button", { class: "quiet", hidden: true, onclick: () => refresh() });

  const soon = settled(() => {
    scope.remember(wanted);
    chosen.clear();
    refresh();
  });
  const typed = (name) => (event) => {
    wanted[name] = event.target.value.trim();
    soon();
  };
  fill(
    main,
    h("div", { class: "head" }, h("h1", {}, "Dead letters"), me.may("operator") && h("div", { class: "buttons" }, all, replay)),
    h("p", { class: "soft" }, "Messages that could not be decoded or stored: acknowledged, kept, and here to be read. After a fix they can go the way again that they could not go."),
    h(
      "div",
      { class: "filters", role: "search" },
      h("input", { type: "search", "data-search": true, placeholder: "Reason, as not_json", "aria-label": "Reason", value: wanted.reason, oninput: typed("reason"), maxlength: 64 }),
      h("input", { type: "search", placeholder: "Device", "aria-label": "Device", value: wanted.device, oninput: typed("device"), maxlength: 64 }),
      arrived,
    ),
    list,
    more,
  );

  function draw() {
    fill(list, letterList(shown, scope, refresh, { chosen: me.may("operator") ? chosen : null, onchoose: drawChosen }));
    more.hidden = !next;
    drawChosen();
  }

  function drawChosen() {
    replay.disabled = chosen.size === 0;
    fill(replay, chosen.size ? `Replay ${count(chosen.size)}` : "Replay");
    all.disabled = shown.length === 0;
  }

  function chooseAll() {
    const every = shown.every(({ id }) => chosen.has(id));
    for (const { id } of shown) every ? chosen.delete(id) : chosen.add(id);
    draw();
  }

  async function page(before) {
    const found = await api.get("/dead-letters", { ...wanted, limit: ROWS, before }, scope.signal);
    next = found.next;
    shown = before ? [...shown, ...found.dead_letters] : found.dead_letters;
    draw();
  }

  const older = () => page(next);
  async function refresh() {
    arrived.hidden = true;
    waiting = 0;
    await scope.attempt(() => page(), tell);
  }

  async function replayChosen() {
    replay.disabled = true;
    const { outcomes, left } = await api.post("/dead-letters/replay", { ids: [...chosen] }, scope.signal);
    chosen.clear();
    const of = (name) => outcomes[name] ?? 0;
    const good = of("committed") + of("deduplicated");
    const bad = of("dead_lettered");
    const texts = [`${count(good)} replayed`, bad && `${count(bad)} refused again`, left.length && `${count(left.length)} stay: ${left[0].detail}`];
    toast(`${texts.filter(Boolean).join(", ")}.`, bad + left.length ? "bad" : "ok");
    await refresh();
  }

  const tell = (problem) => (toast(problem.message, "bad"), drawChosen());

  // New letters do not push away what somebody reads or has chosen: they are offered.
  let waiting = 0;
  function come() {
    if (!chosen.size && !busy(list) && !list.querySelector("details[open]")) return refresh();
    waiting += 1;
    arrived.hidden = false;
    return fill(arrived, `Show ${count(waiting)} new`);
  }

  scope.refresh = refresh;
  refresh();
  scope.follow({ kind: ["dead_letter"] }, { dead_letter: settled(() => scope.over || come()) });
}
