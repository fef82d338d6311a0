// All devices, a page at a time.

import * as api from "../api.js";
import { choice, fill, h, settled } from "../dom.js";
import { ago, count, value } from "../format.js";
import { numbersOf } from "../fields.js";
import { spark } from "../plot.js";
import { chip, shape } from "../status.js";

const ROWS = 50;
const SPARKS = 40;
const AT_ONCE = 3;
const STATUSES = ["", "online", "silent", "offline", "unknown"];
const SORTS = { id: "By id", "-id": "By id, last first", "-last_seen": "Heard of last", last_seen: "Silent for longest" };

export function devices(main, scope) {
  const wanted = {
    status: scope.query.get("status") ?? "",
    profile: scope.query.get("profile") ?? "",
    tag: scope.query.get("tag") ?? "",
    search: scope.query.get("search") ?? "",
    sort: scope.query.get("sort") ?? "",
  };
  let cursors = [""]; // where each page up to the shown one begins
  let next = null;
  let rows = new Map();
  let load = 0;
  const sparks = new Sparks(scope);

  const body = h("tbody", {});
  const note = h("p", { class: "soft empty" });
  const back = h("button", { onclick: () => turn(-1) }, "Back");
  const forth = h("button", { onclick: () => turn(1) }, "Next");
  const place = h("span", { class: "soft" });
  const profile = choice({ "aria-label": "Profile", onchange: (e) => choose({ profile: e.target.value }) }, [["", "Every profile"]]);
  const statuses = h("div", { class: "segments", role: "group", "aria-label": "Status" });

  function choose(change) {
    Object.assign(wanted, change);
    scope.remember(wanted);
    cursors = [""];
    drawStatuses();
    refresh();
  }

  function turn(step) {
    if (step > 0 && next) cursors.push(next);
    else if (step < 0 && cursors.length > 1) cursors.pop();
    refresh();
    scrollTo(0, 0);
  }

  function drawStatuses(counts) {
    if (counts) statuses.counts = counts;
    const known = statuses.counts ?? {};
    fill(
      statuses,
      STATUSES.map((status) =>
        h(
          "button",
          { "aria-pressed": String(wanted.status === status), onclick: () => choose({ status }) },
          status ? shape(status) : null,
          h("span", {}, status || "all"),
          h("small", {}, count(status ? (known[status] ?? 0) : (known.known ?? 0))),
        ),
      ),
    );
  }

  const soon = settled(choose);
  const typed = (name) => (event) => {
    wanted[name] = event.target.value.trim();
    soon();
  };

  fill(
    main,
    h("div", { class: "head" }, h("h1", {}, "Devices"), statuses),
    h(
      "div",
      { class: "filters", role: "search" },
      h("input", { type: "search", "data-search": true, placeholder: "Part of an id or name  ( / )", "aria-label": "Search", value: wanted.search, oninput: typed("search"), maxlength: 64 }),
      h("input", { type: "search", class: "narrow", placeholder: "Tag", "aria-label": "Tag", value: wanted.tag, oninput: typed("tag"), maxlength: 64 }),
      profile,
      choice({ "aria-label": "Order", onchange: (e) => choose({ sort: e.target.value }) }, Object.entries(SORTS), wanted.sort),
    ),
    h(
      "table",
      { class: "list devices" },
      h("thead", {}, h("tr", {}, ["Device", "Status", "Last values", "Trend", "Profile, tags", "Messages", "Last seen"].map((title) => h("th", { scope: "col" }, title)))),
      body,
    ),
    note,
    h("div", { class: "pager" }, back, place, forth),
  );
  drawStatuses();

  async function page() {
    const mine = ++load;
    const query = { ...wanted, limit: ROWS, after: cursors.at(-1) };
    const found = await api.get("/devices", query, scope.signal);
    if (mine !== load) return;
    next = found.next;
    const ids = found.devices.map((device) => device.device_id);
    const fresh = ids.join() !== [...rows.keys()].join();
    if (fresh) {
      rows = new Map(found.devices.map((device) => [device.device_id, new Row(device)]));
      fill(body, [...rows.values()].map((row) => row.element));
      sparks.restart([...rows.values()]);
      scope.follow({ kind: ["presence", "telemetry"], device: ids.length ? ids : ["-"] }, { presence, telemetry });
    } else {
      for (const device of found.devices) rows.get(device.device_id).take(device);
    }
    const filtered = wanted.status || wanted.profile || wanted.tag || wanted.search;
    fill(note, ids.length === 0 && (next ? "None of those looked at so far. There may be more on the next page." : filtered ? "No device fits." : "No device has been heard of yet. They show up here as soon as they publish something."));
    back.disabled = cursors.length < 2;
    forth.disabled = !next;
    const first = (cursors.length - 1) * ROWS;
    fill(place, ids.length ? `${count(first + 1)}–${count(first + ids.length)}${(found.known ?? null) === null ? "" : ` of ${count(found.known)}`}` : "");
  }

  const presence = (event) => rows.get(event.device_id)?.presence(event);
  const telemetry = (event) => rows.get(event.device_id)?.telemetry(event);
  const refresh = () => scope.attempt(page, (problem) => fill(note, problem.message));

  scope.refresh = refresh;
  scope.every(5_000, async () => {
    drawStatuses((await api.get("/summary", {}, scope.signal)).devices);
    await page();
  });
  scope.attempt(async () => {
    const { profiles } = await api.get("/profiles", {}, scope.signal);
    profile.append(...profiles.map(({ name }) => h("option", { value: name, selected: name === wanted.profile }, name)));
  });
}

/** One device, kept up to date without being made anew. */
class Row {
  constructor(device) {
    this.id = device.device_id;
    this.cells = Object.fromEntries(["status", "values", "spark", "profile", "messages", "seen"].map((name) => [name, h("td", { class: `cell-${name}` })]));
    this.line = [];
    this.name = h("small", { class: "soft" });
    this.element = h(
      "tr",
      { "data-device": this.id },
      h("th", { scope: "row" }, h("a", { class: "id", href: `#/devices/${api.part(this.id)}` }, this.id), this.name),
      Object.values(this.cells),
    );
    this.take(device);
  }

  take(device) {
    this.device = device;
    this.shown = device.streams.default ? "default" : Object.keys(device.streams)[0];
    fill(this.name, typeof device.metadata?.name === "string" ? device.metadata.name : "");
    fill(this.cells.status, chip(device.status));
    fill(this.cells.profile, device.profile, device.tags?.map((tag) => [" ", h("a", { class: "tag", href: `#/devices?tag=${api.part(tag)}` }, tag)]));
    fill(this.cells.messages, count(device.messages));
    fill(this.cells.seen, ago(device.last_seen));
    this.values(device.streams[this.shown]?.values);
  }

  values(values) {
    const numbers = numbersOf(values).slice(0, 3);
    this.field = numbers[0]?.field;
    fill(
      this.cells.values,
      numbers.length
        ? numbers.map(({ field, number }) => h("span", { class: "pair" }, h("small", {}, field), " ", value(number)))
        : values === undefined ? "" : h("span", { class: "clip soft" }, value(values)),
    );
    return numbers[0]?.number;
  }

  presence(event) {
    this.device.status = event.status;
    fill(this.cells.status, chip(event.status));
  }

  telemetry(event) {
    this.device.messages += 1;
    fill(this.cells.messages, count(this.device.messages));
    fill(this.cells.seen, ago(event.received_at));
    if (event.stream !== this.shown || event.values === null) return;
    const number = this.values(event.values);
    if (number !== undefined) this.draw([...this.line, number].slice(-SPARKS));
  }

  draw(line) {
    this.line = line;
    fill(this.cells.spark, spark(line));
  }
}

/** Fetches the lines of the rows that can be seen, a few at a time. */
class Sparks {
  constructor(scope) {
    this.scope = scope;
    this.waiting = [];
    this.running = 0;
    this.seen = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        this.seen.unobserve(entry.target);
        const row = this.rows.get(entry.target);
        if (row?.field) this.waiting.push(row);
      }
      this.run();
    });
    scope.signal.addEventListener("abort", () => this.seen.disconnect());
  }

  restart(rows) {
    this.seen.disconnect();
    this.waiting = [];
    this.rows = new Map(rows.map((row) => [row.element, row]));
    for (const row of rows) this.seen.observe(row.element);
  }

  async run() {
    while (this.running < AT_ONCE && this.waiting.length) {
      const row = this.waiting.shift();
      this.running += 1;
      this.scope
        .attempt(async () => {
          const query = { field: row.field, stream: row.shown, points: SPARKS };
          const series = await api.get(`/devices/${api.part(row.id)}/telemetry/series`, query, this.scope.signal);
          row.draw([...series.mean.slice(-SPARKS), ...row.line].slice(-SPARKS));
        })
        .finally(() => {
          this.running -= 1;
          this.run();
        });
    }
  }
}
