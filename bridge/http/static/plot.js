// Plots: uPlot in the page's own colours, and lines so small that they need no axes.

import { svg } from "./dom.js";
import { clock, day, figure, value } from "./format.js";

const dark = matchMedia("(prefers-color-scheme: dark)");

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** A plot in `box` that fits its width and follows the colour scheme: `draw(data)`. `options()` gives uPlot's own,
 * and is asked anew whenever the colours change. */
export class Plot {
  constructor(box, options, signal) {
    this.box = box;
    this.options = options;
    this.data = null;
    const observer = new ResizeObserver(() => this.plot?.setSize(this.size()));
    observer.observe(box);
    const anew = () => this.data && this.make();
    dark.addEventListener("change", anew, { signal });
    signal.addEventListener("abort", () => {
      observer.disconnect();
      this.plot?.destroy();
    });
  }

  size() {
    return { width: Math.max(80, this.box.clientWidth), height: this.box.clientHeight || 80 };
  }

  make() {
    this.plot?.destroy();
    this.plot = new window.uPlot({ ...this.size(), ...this.options() }, this.data, this.box);
  }

  draw(data, scales) {
    this.data = data;
    if (!this.plot) this.make();
    else this.plot.setData(data, !scales);
    if (scales) this.plot.setScale("x", scales);
  }
}

function axis(more) {
  return {
    stroke: colour("--ink-2"),
    font: "11px system-ui, sans-serif",
    grid: { stroke: colour("--line"), width: 1 },
    ticks: { show: false },
    ...more,
  };
}

/** Times on the axis, in 24 hours, with the day where it begins. */
function times(_plot, splits, _axis, _space, step) {
  let before = "";
  return splits.map((at) => {
    if (at === null) return "";
    const text = clock(at);
    const d = new Date(at * 1000);
    const today = d.toDateString();
    if (step >= 86_400) return day(d);
    const time = text.split(" ").at(-1).slice(0, step < 60 ? 8 : 5);
    const first = before !== today && before !== "";
    before = today;
    return first ? `${time}\n${day(d)}` : time;
  });
}

/** A big plot of one field: [ts, mean, min, max]. `onZoom(since, until)` when a part was marked. */
export function fieldPlot(box, onZoom, onPoint, signal) {
  return new Plot(
    box,
    () => ({
      padding: [10, 8, 0, 0],
      legend: { show: false },
      cursor: {
        points: { size: 7, fill: colour("--accent"), stroke: colour("--sheet") },
        drag: { x: true, y: false, setScale: false },
        y: false,
      },
      scales: { x: { time: true }, y: { range: (_u, low, high) => roomy(low, high) } },
      axes: [axis({ space: 70, size: 34, values: times }), axis({ size: 56, values: (_u, splits) => splits.map((v) => value(v)) })],
      series: [
        {},
        { stroke: colour("--accent"), width: 1.75, spanGaps: false, points: { show: pointsShown, size: 4 } },
        { stroke: "transparent", points: { show: false } },
        { stroke: "transparent", points: { show: false } },
      ],
      bands: [{ series: [3, 2], fill: colour("--accent-band") }],
      hooks: {
        setCursor: [(u) => onPoint(u.cursor.idx)],
        setSelect: [
          (u) => {
            const { left, width } = u.select;
            if (width < 4) return;
            onZoom(u.posToVal(left, "x"), u.posToVal(left + width, "x"));
            u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
          },
        ],
      },
    }),
    signal,
  );
}

const pointsShown = (u) => (u.data[0]?.length ?? 0) < 90;

function roomy(low, high) {
  if (low === null || high === null) return [0, 1];
  const pad = (high - low) * 0.1 || Math.abs(high) * 0.05 || 1;
  return [low - pad, high + pad];
}

/** A small plot of the last hour, with what it says under the pointer: all of them share one cursor. */
export function hourPlot(box, tone, onPoint, signal) {
  return new Plot(
    box,
    () => ({
      padding: [6, 0, 0, 0],
      legend: { show: false },
      cursor: { sync: { key: "hour", setSeries: false }, y: false, drag: { x: false, y: false }, points: { size: 6 } },
      scales: { x: { time: true }, y: { range: (_u, _low, high) => [0, (high || 1) * 1.15] } },
      axes: [{ show: false }, { show: false }],
      series: [{}, { stroke: colour(tone), width: 1.5, fill: `${colour(tone)}1f`, points: { show: false } }],
      hooks: { setCursor: [(u) => onPoint(u.cursor.idx)] },
    }),
    signal,
  );
}

/** A line without axes, as a drawing: `values` may hold nulls. */
export function spark(values, width = 96, height = 22) {
  const known = values.filter((v) => v !== null && Number.isFinite(v));
  if (known.length < 2) return svg("svg", { class: "spark", viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  const low = Math.min(...known);
  const span = Math.max(...known) - low || 1;
  const step = (width - 5) / (values.length - 1);
  let path = "";
  let last = null;
  values.forEach((v, i) => {
    if (v === null || !Number.isFinite(v)) return (last = null);
    const at = `${(1 + i * step).toFixed(1)} ${(height - 3 - ((v - low) / span) * (height - 6)).toFixed(1)}`;
    path += `${last === null ? "M" : "L"}${at}`;
    last = at;
  });
  const [x, y] = last?.split(" ") ?? [];
  return svg(
    "svg",
    { class: "spark", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `from ${figure(low)} to ${figure(low + span)}` },
    svg("path", { d: path, class: "line" }),
    last && svg("circle", { cx: x, cy: y, r: 2 }),
  );
}
