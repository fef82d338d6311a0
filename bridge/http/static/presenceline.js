// When a device was there: a day as a line, and its last changes.

import { h } from "./dom.js";
import { clock, date, duration, moment } from "./format.js";
import { chip, tone } from "./status.js";

const DAY = 86_400;
const LISTED = 8;

/** `transitions`: the latest first, as the API gives them. */
export function presenceLine(transitions) {
  if (!transitions.length) return h("p", { class: "soft" }, "No change of presence is stored.");
  const now = Date.now() / 1000;
  const oldest = date(transitions.at(-1).at) / 1000;
  const since = Math.max(now - DAY, Math.min(oldest, now - 60));
  const parts = [];
  let until = now;
  for (const { status, cause, at } of transitions) {
    const from = Math.max(since, date(at) / 1000);
    if (until > from) parts.unshift({ status, cause, from, until });
    until = Math.min(until, from);
    if (from <= since) break;
  }
  if (until > since) parts.unshift({ status: "unknown", cause: "before it was known", from: since, until });
  const online = parts.filter(({ status }) => status === "online").reduce((sum, part) => sum + part.until - part.from, 0);
  return [
    h(
      "div",
      { class: "timeline", role: "img", "aria-label": `Online ${Math.round((online / (now - since)) * 100)} % of the last ${duration(now - since)}` },
      parts.map(({ status, cause, from, until: to }) =>
        h("i", { class: `${tone(status)} ${status}`, style: { "flex-grow": String(to - from) }, title: `${status} for ${duration(to - from)} from ${clock(from)} (${cause.replaceAll("_", " ")})` }),
      ),
    ),
    h("p", { class: "ends soft" }, h("span", {}, clock(since)), h("span", {}, `online ${Math.round((online / (now - since)) * 100)} %`), h("span", {}, "now")),
    h("ol", { class: "changes" }, transitions.slice(0, LISTED).map(({ status, cause, at }) => h("li", {}, moment(at), chip(status), h("span", { class: "soft" }, cause.replaceAll("_", " "))))),
  ];
}
