// The bridge at a glance.

import * as api from "../api.js";
import { fill, h } from "../dom.js";
import { clock, count, date, duration, figure, moment } from "../format.js";
import { hourPlot } from "../plot.js";
import { chip, shape, tone } from "../status.js";

const STATUSES = ["online", "silent", "offline", "unknown"];
const HAPPENINGS = 14;

/** name in the history → [title, unit, colour] */
const PLOTS = {
  messages_per_second: ["Messages", "/s", "--accent"],
  commit_ms: ["Commit", "ms", "--accent"],
  loop_lag_p99_ms: ["Loop lag, p99", "ms", "--idle"],
  in_flight: ["In flight", "", "--idle"],
};

export function overview(main, scope) {
  const verdict = h("section", { class: "verdict", role: "status", "aria-label": "Whether all is well" });
  const fleet = h("section", { class: "fleet", "aria-label": "Devices" });
  const plots = h("section", { class: "plots", "aria-label": "The last hour" });
  const ledger = h("section", { class: "card ledger" });
  const machine = h("section", { class: "card machine" });
  const news = h("ol", { class: "news" });
  fill(
    main,
    h("h1", { class: "unseen" }, "Overview"),
    verdict,
    fleet,
    plots,
    h(
      "div",
      { class: "columns" },
      h("div", { class: "stack" }, ledger, machine),
      h("section", { class: "card" }, h("h2", {}, "Just now"), news),
    ),
  );
  const tiles = Object.entries(PLOTS).map(([name, look]) => new Tile(name, look, scope.signal));
  fill(plots, tiles.map((tile) => tile.element));

  async function now() {
    const summary = await api.get("/summary", {}, scope.signal);
    drawVerdict(verdict, troubles(summary, waiting), summary.devices.known);
    drawFleet(fleet, summary.devices);
    drawLedger(ledger, summary.ledger);
    drawMachine(machine, summary);
  }

  /** Nobody answers: then nothing is said to be well. */
  const unknown = (problem) => drawVerdict(verdict, [["failed", problem.message, "What is shown here is what was known last"]]);

  /** What waits for somebody: refused messages, and devices that are to be approved. */
  let waiting = {};
  async function look() {
    const [{ dead_letters: letters }, { devices }] = await Promise.all([
      api.get("/dead-letters", { limit: 1 }, scope.signal),
      api.get("/registry", { quarantined: true, limit: 1 }, scope.signal),
    ]);
    waiting = { letters: letters.length, newcomers: devices.length };
    await now();
  }

  async function hour() {
    const columns = await api.get("/summary/history", {}, scope.signal);
    for (const tile of tiles) tile.draw(columns);
  }

  /** What was, before anything happens: the latest commands and refused messages. */
  async function before() {
    const [{ commands }, { dead_letters: letters }] = await Promise.all([
      api.get("/commands", { limit: HAPPENINGS }, scope.signal),
      api.get("/dead-letters", { limit: HAPPENINGS }, scope.signal),
    ]);
    const past = [
      ...commands.map((one) => ["command", { ...one, at: date(one.updated_at) / 1000 }]),
      ...letters.map((one) => ["dead_letter", { ...one, at: date(one.at) / 1000 }]),
    ];
    told = past.sort(([, a], [, b]) => b.at - a.at).slice(0, HAPPENINGS);
    drawNews();
  }

  let told = [];
  function tell(kind, event) {
    // Of a command its last step is told.
    const others = kind === "command" ? told.filter(([, one]) => (one.command_id ?? one.id) !== event.id) : told;
    told = [[kind, event], ...others].slice(0, HAPPENINGS);
    drawNews();
  }

  const drawNews = () =>
    fill(news, told.length ? told.map(([kind, data]) => line(kind, data)) : h("li", { class: "soft" }, "What happens to devices, their commands and what is refused shows up here."));

  scope.refresh = () => {
    for (const work of [look, hour, before]) scope.attempt(work);
  };
  scope.attempt(before);
  scope.every(10_000, look);
  scope.every(2_000, () => scope.attempt(now, unknown));
  scope.every(10_000, hour);
  scope.follow(
    { kind: ["presence", "command", "dead_letter"] },
    Object.fromEntries(["presence", "command", "dead_letter"].map((kind) => [kind, (data) => tell(kind, data)])),
  );
}

/** What is not as it should be, the worst first: [status, what, what to do, the place for that]. */
function troubles({ ledger, database, spool, sinks = [], devices }, { letters, newcomers }) {
  const some = (n, status) => n > 0 && [status, `${count(n)} ${n === 1 ? "device is" : "devices are"} ${status}`, "See which", `#/devices?status=${status}`];
  return [
    ledger.difference !== 0 && ["failed", `${count(Math.abs(ledger.difference))} messages are unaccounted for`, "This is a fault of the bridge: keep its log"],
    database && database.breaker !== "closed" && ["failed", "The database does not answer", "Start it, or see to the way there: the bridge comes back by itself"],
    spool?.dropped > 0 && ["failed", `${count(spool.dropped)} rows had no room in the spool and are lost`, "Make room on its disk"],
    spool?.stuck && ["failed", "The spool cannot be emptied", spool.stuck],
    spool?.active && ["silent", "Readings wait on the local disk", spool.reason],
    ...sinks.map((sink) => (sink.trouble || sink.breaker !== "closed") && ["silent", `Sink ${sink.name} does not take what it is given`, sink.trouble ?? "It is tried again"]),
    some(devices.offline, "offline"),
    some(devices.silent, "silent"),
    newcomers > 0 && ["silent", "New devices wait for approval", "See which", "#/admin"],
    letters > 0 && ["dead_letter", "Messages were refused", "Read them, replay or drop them", "#/letters"],
  ].filter(Boolean);
}

function drawVerdict(element, found, devices) {
  // It is read out when it changes, so it is not touched when it does not.
  const told = JSON.stringify([found, devices > 0]);
  if (element.told === told) return;
  element.told = told;
  const worst = !found.length ? "ok" : found[0][0] === "failed" ? "bad" : "warn";
  element.className = `verdict ${worst}`;
  const title = found.length ? (found.length === 1 ? "One thing needs a look" : `${found.length} things need a look`) : "All is well";
  fill(
    element,
    h("h2", {}, shape({ ok: "succeeded", warn: "silent", bad: "failed" }[worst]), title),
    found.length
      ? h("ul", {}, found.map(([status, what, remedy, href]) => h("li", {}, shape(status), h("p", {}, h("b", {}, what), " ", href ? h("a", { href }, remedy) : h("span", { class: "soft" }, remedy)))))
      : devices
        ? h("p", { class: "soft" }, "Every device is heard, the database is in reach, and nothing waits for anybody.")
        : h("p", { class: "soft" }, "No device has been heard of yet: have one publish to ", h("code", {}, "devices/ID/telemetry"), ", or try ", h("code", {}, "mqtt-bridge simulate"), "."),
  );
}

function drawFleet(element, devices) {
  const known = devices.known ?? 0;
  const share = (status) => (known ? ((devices[status] ?? 0) / known) * 100 : 0);
  fill(
    element,
    h("p", { class: "hero" }, h("strong", { id: "online" }, count(devices.online ?? 0)), h("span", {}, ` of ${count(known)} devices online`)),
    h(
      "div",
      { class: "fleet-bar", "aria-hidden": "true" },
      STATUSES.map((status) => share(status) > 0 && h("i", { class: tone(status), style: { "flex-grow": String(share(status)) } })),
    ),
    h(
      "ul",
      { class: "legend" },
      STATUSES.map((status) =>
        h("li", {}, h("a", { href: `#/devices?status=${status}` }, shape(status), h("b", {}, count(devices[status] ?? 0)), ` ${status}`)),
      ),
    ),
  );
}

/** A figure, how it went over the last hour, and what it was under the pointer. */
class Tile {
  constructor(name, [title, unit, colour], signal) {
    this.name = name;
    this.number = h("b", {});
    this.when = h("span", { class: "soft" });
    this.box = h("div", { class: "plot" });
    this.element = h("div", { class: "tile" }, h("h2", {}, title), h("p", {}, this.number, " ", unit, " ", this.when), this.box);
    this.plot = hourPlot(this.box, colour, (index) => this.say(index), signal);
    this.columns = null;
  }

  draw(columns) {
    this.columns = columns;
    this.element.hidden = !columns[this.name];
    if (this.element.hidden) return;
    const ts = columns.ts;
    const end = ts.at(-1) ?? Date.now() / 1000;
    // A bridge that has just started fills the width, too.
    this.plot.draw([ts, columns[this.name]], { min: Math.max(end - 3600, Math.min(ts[0] ?? end, end - 120)), max: end });
    this.say(null);
  }

  say(index) {
    if (!this.columns?.[this.name]) return;
    const values = this.columns[this.name];
    const shown = index ?? values.length - 1;
    fill(this.number, figure(values[shown]));
    fill(this.when, index === null || index === undefined ? "" : `at ${clock(this.columns.ts[shown])}`);
  }
}

function drawLedger(element, ledger) {
  const dropped = Object.values(ledger.dropped ?? {}).reduce((a, b) => a + b, 0);
  const term = (n, name, sign, href) =>
    h(
      "span",
      { class: "summand" },
      sign && h("span", { class: "sign" }, sign),
      h(href ? "a" : "span", { class: "term", href }, h("b", {}, count(n)), h("small", {}, name)),
    );
  const holds = ledger.difference === 0;
  fill(
    element,
    h("h2", {}, "Ledger", chip(holds ? "succeeded" : "failed", holds ? "adds up" : `${count(ledger.difference)} unaccounted for`)),
    h(
      "p",
      { class: "equation" },
      term(ledger.received, "received"),
      term(ledger.committed, "committed", "="),
      term(ledger.deduplicated, "repeated", "+"),
      term(ledger.dead_lettered, "dead letters", "+", "#/letters"),
      term(dropped, "dropped", "+"),
      term(ledger.in_flight, "in flight", "+"),
    ),
    dropped > 0 && h("p", { class: "soft" }, "Dropped: ", Object.entries(ledger.dropped).map(([why, n]) => `${why.replaceAll("_", " ")} ${count(n)}`).join(", ")),
  );
}

const ENDS = ["succeeded", "failed", "expired", "cancelled"];
const REACH = { closed: "in reach", open: "left alone for a while", half_open: "being tried" };

function drawMachine(element, summary) {
  const rows = [];
  const { database, spool, sinks = [] } = summary;
  if (database) rows.push(["Database", chip(database.breaker, REACH[database.breaker]), database.dialect]);
  if (spool) {
    const word = spool.active ? `takes what comes: ${spool.reason}` : spool.waiting ? "is being emptied" : "empty";
    const size = spool.waiting > 0 && `${count(spool.waiting)} rows, ${count(Math.ceil(spool.bytes / 1024))} KiB`;
    rows.push(["Spool", chip(spool.active || spool.waiting ? "silent" : "succeeded", word), size]);
    if (spool.dropped) rows.push(["", h("span", { class: "trouble" }, `${count(spool.dropped)} rows had no room and are lost`), ""]);
    if (spool.stuck) rows.push(["", h("span", { class: "trouble" }, spool.stuck), ""]);
  }
  const agents = Object.entries(summary.agents ?? {}).filter(([, n]) => n);
  rows.push(["Agents", agents.map(([activity, n]) => `${count(n)} ${activity}`).join(", ") || "none", ""]);
  // They are counted at each step: those that have not ended are the difference.
  const ended = ENDS.map((status) => [status, summary.commands?.[status] ?? 0]);
  const open = Math.max(0, (summary.commands?.queued ?? 0) - ended.reduce((sum, [, n]) => sum + n, 0));
  const done = [...ended, ["in_progress", open, "under way"]].filter(([, n]) => n);
  rows.push(["Commands", done.length ? done.map(([status, n, word = status]) => h("span", { class: "inline" }, shape(status), `${count(n)} ${word} `)) : "none since the start", ""]);
  for (const sink of sinks) {
    rows.push([
      h("span", {}, "Sink ", h("b", {}, sink.name)),
      chip(sink.breaker, sink.trouble ? sink.trouble : `${count(sink.delivered)} delivered`),
      [sink.lag >= 1 && `${duration(sink.lag)} behind `, sink.refused > 0 && `${count(sink.refused)} refused`],
    ]);
  }
  fill(
    element,
    h("h2", {}, "Parts"),
    h("table", { class: "facts" }, h("tbody", {}, rows.map(([name, what, more]) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, what), h("td", { class: "soft right" }, more))))),
  );
}

function line(kind, data) {
  const where = data.device_id && h("a", { class: "id", href: `#/devices/${api.part(data.device_id)}` }, data.device_id);
  const what = {
    presence: () => [where, ` ${data.status}`, h("span", { class: "soft" }, `, ${data.cause.replaceAll("_", " ")}`)],
    command: () => [where, " ", h("b", {}, data.name), ` ${data.status.replaceAll("_", " ")}`],
    dead_letter: () => [where ?? h("span", { class: "id" }, data.topic), " refused", h("span", { class: "soft" }, `, ${data.reason.replaceAll("_", " ")}`)],
  };
  return h("li", {}, moment(data.at), shape(kind === "dead_letter" ? "dead_letter" : data.status), h("span", { class: "text" }, what[kind]()));
}
