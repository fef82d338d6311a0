// What state something is in: always a shape, a colour and a word.

import { h, svg } from "./dom.js";

const RING = "M7 2a5 5 0 1 0 0 10a5 5 0 0 0 0-10z";
const HALF = "M7 2a5 5 0 0 0 0 10z";
const CHECK = "M2.5 7.5l3 3l6-7";
const CROSS = "M3.5 3.5l7 7M10.5 3.5l-7 7";
const ARROW = "M4 3l6 4l-6 4z";

/** status → [tone, what is drawn, what is filled] */
const SHAPES = {
  online: ["ok", "", RING],
  silent: ["warn", RING, HALF],
  offline: ["bad", `${RING}M3.7 3.7l6.6 6.6`, ""],
  unknown: ["idle", RING, ""],
  queued: ["idle", RING, ""],
  sent: ["busy", ARROW, ""],
  delivered: ["busy", "", ARROW],
  in_progress: ["busy", RING, HALF],
  succeeded: ["ok", CHECK, ""],
  failed: ["bad", CROSS, ""],
  expired: ["warn", `${RING}M7 4.2V7l2 1.5`, ""],
  cancelled: ["idle", "M3 7h8", ""],
  running: ["busy", RING, HALF],
  active: ["busy", `${RING}M7 4.2V7l2 1.5`, ""],
  done: ["ok", CHECK, ""],
  finished: ["ok", CHECK, ""],
  stopped: ["bad", "", "M3.5 3.5h7v7h-7z"],
  dead_letter: ["bad", "M2 3.5h10v7H2zM2 3.5l5 4l5-4", ""],
  closed: ["ok", CHECK, ""],
  open: ["bad", CROSS, ""],
  half_open: ["warn", RING, HALF],
};

/** The tone of a status: ok, warn, bad, busy or idle. */
export const tone = (status) => SHAPES[status]?.[0] ?? "idle";

/** The shape alone, for where the word stands beside it. */
export function shape(status) {
  const [colour, line, filled] = SHAPES[status] ?? SHAPES.unknown;
  return svg(
    "svg",
    { class: `shape ${colour} ${status === "unknown" ? "dotted" : ""}`, viewBox: "0 0 14 14", "aria-hidden": "true" },
    line && svg("path", { d: line, class: "line" }),
    filled && svg("path", { d: filled, class: "filled" }),
  );
}

/** Shape and word. */
export function chip(status, word = status) {
  return h("span", { class: `chip ${tone(status)}`, "data-status": status }, shape(status), word.replaceAll("_", " "));
}
