// Numbers and times as people read them.

import { h } from "./dom.js";

const plain = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const precise = new Intl.NumberFormat("en", { maximumSignificantDigits: 5 });

/** A count. */
export const count = (n) => (n === null || n === undefined ? "–" : n >= 1e6 ? short.format(n) : plain.format(n));

/** A measured value, whatever it is. */
export function value(v) {
  if (typeof v === "number") return Number.isInteger(v) ? plain.format(v) : precise.format(v);
  if (typeof v === "string") return v;
  return v === undefined ? "" : JSON.stringify(v);
}

/** In one line: of an object its keys and values. */
export function brief(v) {
  if (v === null || typeof v !== "object" || Array.isArray(v)) return value(v);
  return Object.entries(v).map(([key, one]) => `${key} ${value(one)}`).join(", ");
}

/** A figure with as many digits as say something. */
export function figure(n) {
  if (n === null || n === undefined) return "–";
  if (Number.isInteger(n)) return count(n);
  return n >= 1000 ? count(Math.round(n)) : n >= 100 ? n.toFixed(0) : n >= 10 ? n.toFixed(1) : n.toFixed(n ? 2 : 0);
}

/** Seconds as a length of time. */
export function duration(seconds) {
  const s = Math.abs(seconds);
  if (s < 0.001) return "0 ms";
  if (s < 1) return `${Math.round(s * 1000)} ms`;
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 60) return `${Math.floor(s)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 172800) return `${Math.floor(s / 3600)} h`;
  return `${Math.floor(s / 86400)} d`;
}

/** RFC 3339 or Unix seconds as a Date. */
export const date = (at) => new Date(typeof at === "number" ? at * 1000 : at);

const two = (n) => String(n).padStart(2, "0");

/** The time of day, with the day if it is not today. */
export function clock(at, millis = false) {
  const d = date(at);
  const time = `${two(d.getHours())}:${two(d.getMinutes())}:${two(d.getSeconds())}`;
  const text = millis ? `${time}.${String(d.getMilliseconds()).padStart(3, "0")}` : time;
  return d.toDateString() === new Date().toDateString() ? text : `${day(d)} ${text}`;
}

/** A day, as Nov 24. */
export const day = (d) => d.toLocaleString("en", { month: "short", day: "numeric" });

/** How long ago, kept up to date while it is shown. */
export function ago(at) {
  const when = date(at);
  return h("time", { datetime: when.toISOString(), "data-ago": "", title: when.toLocaleString() }, sinceText(when));
}

/** A time of day. */
export function moment(at, millis = false) {
  const when = date(at);
  return h("time", { datetime: when.toISOString(), title: when.toLocaleString() }, clock(at, millis));
}

function sinceText(when) {
  const seconds = (Date.now() - when) / 1000;
  return seconds < 2 ? "now" : `${duration(seconds)} ago`;
}

setInterval(() => {
  for (const element of document.querySelectorAll("time[data-ago]")) {
    const text = sinceText(new Date(element.dateTime));
    if (element.textContent !== text) element.textContent = text;
  }
}, 1000);

/** JSON, indented. */
export const json = (v) => JSON.stringify(v, null, 2) ?? "";
