// A device's fields over time: a live plot from a minute to a month.

import * as api from "./api.js";
import { fill, h } from "./dom.js";
import { numberAt, numbersOf } from "./fields.js";
import { clock, count, date, duration, value } from "./format.js";
import { fieldPlot } from "./plot.js";

/** title → seconds */
const RANGES = { "1 min": 60, "15 min": 900, "1 h": 3_600, "6 h": 21_600, "1 d": 86_400, "7 d": 604_800, "30 d": 2_592_000 };
const POINTS = 600;
const KEPT = 5_000;

export class FieldChart {
  constructor(base, scope) {
    this.base = base;
    this.scope = scope;
    this.range = RANGES["15 min"];
    this.zoomed = null; // [since, until] when a part is looked at; else the range up to now
    this.chosen = null; // { stream, field }
    this.offered = "";
    this.columns = [[], [], [], []];
    this.step = 0;
    this.fields = h("div", { class: "segments which", role: "group", "aria-label": "Field" });
    this.ranges = h("div", { class: "segments", role: "group", "aria-label": "Range" });
    this.readout = h("p", { class: "readout" });
    this.source = h("p", { class: "soft source" });
    this.box = h("div", { class: "plot big", role: "img", "aria-label": "The field over time" });
    this.element = h(
      "div",
      {},
      h("div", { class: "chart-head" }, this.fields, this.ranges),
      this.readout,
      this.box,
      h(
        "div",
        { class: "chart-foot" },
        this.source,
        h(
          "div",
          { class: "buttons" },
          h("button", { class: "quiet", onclick: () => this.move(-0.5), "aria-label": "Earlier", title: "Earlier" }, "←"),
          h("button", { class: "quiet", onclick: () => this.zoom(0.5), "aria-label": "Closer", title: "Closer" }, "+"),
          h("button", { class: "quiet", onclick: () => this.zoom(2), "aria-label": "Further away", title: "Further away" }, "−"),
          h("button", { class: "quiet", onclick: () => this.move(0.5), "aria-label": "Later", title: "Later" }, "→"),
          (this.now = h("button", { class: "quiet", onclick: () => this.look(null) }, "Back to now")),
        ),
      ),
    );
    this.plot = fieldPlot(
      this.box,
      (since, until) => this.look([since, until]),
      (index) => this.say(index),
      scope.signal,
    );
    this.drawRanges();
    scope.every(1_000, () => this.tick());
  }

  /** Since when there can be readings: a young device's first minutes are shown larger. */
  begin(since) {
    if (!this.begun && Date.now() - date(since) < 180_000) this.range = RANGES["1 min"];
    if (!this.begun) this.drawRanges();
    this.begun = true;
  }

  /** The streams of the device: their numeric fields can be chosen. */
  offer(streams) {
    const all = Object.entries(streams).flatMap(([stream, { values }]) => numbersOf(values).map(({ field }) => ({ stream, field })));
    const offered = JSON.stringify(all);
    if (offered === this.offered) return;
    this.offered = offered;
    this.all = all;
    if (!all.some((one) => this.is(one))) this.chosen = all[0] ?? null;
    this.drawFields();
    this.scope.attempt(() => this.refresh());
  }

  is(one) {
    return one.stream === this.chosen?.stream && one.field === this.chosen?.field;
  }

  drawFields() {
    const several = new Set(this.all.map(({ stream }) => stream)).size > 1;
    fill(
      this.fields,
      this.all.map((one) =>
        h("button", { "aria-pressed": String(this.is(one)), onclick: () => this.choose(one) }, several && h("small", {}, `${one.stream} `), one.field),
      ),
    );
    if (!this.all.length) fill(this.fields, h("p", { class: "soft" }, "It has sent no numbers yet."));
  }

  drawRanges() {
    fill(
      this.ranges,
      Object.entries(RANGES).map(([title, seconds]) =>
        h("button", { "aria-pressed": String(!this.zoomed && this.range === seconds), onclick: () => ((this.range = seconds), this.look(null)) }, title),
      ),
    );
    this.now.hidden = !this.zoomed;
  }

  choose(one) {
    this.chosen = one;
    this.drawFields();
    this.scope.attempt(() => this.refresh());
  }

  /** Look at a part, or at what comes in. */
  look(zoomed) {
    this.zoomed = zoomed;
    this.drawRanges();
    this.scope.attempt(() => this.refresh());
  }

  get span() {
    const now = Date.now() / 1000;
    return this.zoomed ?? [now - this.range, now];
  }

  move(share) {
    const [since, until] = this.span;
    const by = (until - since) * share;
    this.look(until + by >= Date.now() / 1000 ? null : [since + by, until + by]);
  }

  zoom(factor) {
    const [since, until] = this.span;
    const half = Math.min(Math.max(((until - since) * factor) / 2, 5), RANGES["30 d"] / 2);
    const middle = this.zoomed ? (since + until) / 2 : until - half;
    this.look([middle - half, middle + half]);
  }

  async refresh() {
    this.asked = Date.now();
    if (!this.chosen) return;
    const { stream, field } = this.chosen;
    const [since, until] = this.span;
    const query = { stream, field, since, points: POINTS, until: this.zoomed ? until : undefined };
    const series = await api.get(`${this.base}/telemetry/series`, query, this.scope.signal);
    if (this.chosen?.stream !== stream || this.chosen.field !== field || (this.zoomed ? this.zoomed[0] !== since : this.span[1] - this.range - since > 30)) return;
    this.step = series.step;
    this.columns = gaps(series);
    const total = series.count.reduce((a, b) => a + b, 0);
    const each = series.step ? `one point for ${duration(series.step)}, with its lowest and highest` : "each is a point";
    fill(this.source, `${count(total)} readings, ${each}`, series.truncated && "; only the latest of them: choose a shorter range");
    this.draw();
    this.say(null);
  }

  /** A reading has come in. */
  arrived(event) {
    if (event.stream !== this.chosen?.stream || event.values === null) return;
    const number = numberAt(event.values, this.chosen.field);
    if (number === undefined) return;
    const [ts, mean, min, max] = this.columns;
    // The plot needs its times in order; what comes late is there when it is fetched again.
    if (ts.length && event.ts <= ts.at(-1)) return;
    ts.push(event.ts);
    for (const column of [mean, min, max]) column.push(number);
    if (ts.length > KEPT) for (const column of this.columns) column.shift();
    this.dirty = true;
  }

  /** Once a second: draw what came in and let time go on; from time to time have the points anew. */
  async tick() {
    if (this.zoomed || !this.chosen) return;
    const again = Math.max(15, this.step, this.range / 200) * 1000;
    if (this.columns[0].length && Date.now() - this.asked > again) return this.refresh();
    if (this.dirty || this.range <= RANGES["1 h"]) this.draw();
    this.dirty = false;
  }

  draw() {
    const [min, max] = this.span;
    this.box.dataset.points = this.columns[0].length;
    this.plot.draw(this.columns, { min, max });
    if (!this.pointed) this.say(null);
  }

  say(index) {
    this.pointed = index !== null && index !== undefined;
    const [ts, mean, min, max] = this.columns;
    const at = this.pointed ? index : ts.length - 1;
    if (at < 0 || mean[at] === null || mean[at] === undefined) return fill(this.readout, h("b", {}, "–"), h("span", { class: "soft" }, "no readings in this range"));
    const band = max[at] > min[at] && [" between ", value(min[at]), " and ", value(max[at])];
    return fill(this.readout, h("b", {}, value(mean[at])), h("span", { class: "soft" }, band, ` at ${clock(ts[at])}`));
  }
}

/** uPlot's columns, with nothing drawn across a time without readings. */
function gaps({ ts, mean, min, max, step }) {
  const columns = [[], [], [], []];
  // A device that sends seldom has no gap between any two of its readings.
  const usual = Math.max(step, median(ts.slice(1).map((at, i) => at - ts[i])) * (step ? 1 : 3));
  ts.forEach((at, i) => {
    if (i && at - ts[i - 1] > Math.max(usual * 2.5, 5)) {
      columns[0].push(ts[i - 1] + usual);
      for (const column of columns.slice(1)) column.push(null);
    }
    [at, mean[i], min[i], max[i]].forEach((v, c) => columns[c].push(v));
  });
  return columns;
}

function median(list) {
  return [...list].sort((a, b) => a - b)[list.length >> 1] ?? 0;
}
