// One device: what it measures, what it is asked, what became of that.

import * as api from "../api.js";
import { fill, h } from "../dom.js";
import { FieldChart } from "../chart.js";
import { measured } from "../fields.js";
import { Credentials } from "../credentials.js";
import { Steps } from "../steps.js";
import { ago, brief, count, duration, json, moment, value } from "../format.js";
import { letterList } from "../letterlist.js";
import { me } from "../me.js";
import { presenceLine } from "../presenceline.js";
import { commandForm } from "../sendform.js";
import { chip } from "../status.js";
import { TwinEditor } from "../twineditor.js";

const MESSAGES = 30;

export function device(main, scope) {
  const id = scope.path[0];
  const base = `/devices/${api.part(id)}`;
  document.title = `${id} · Agent Bridge`;

  const head = h("div", { class: "head device-head" }, h("h1", { class: "id" }, id));
  const facts = h("dl", { class: "facts-line" });
  const missing = h("p", { class: "soft empty" });
  const content = h("div", { class: "device", hidden: true });
  fill(main, h("p", { class: "crumb" }, h("a", { href: "#/devices" }, "Devices")), head, facts, missing, content);

  const status = h("span", {});
  const name = h("span", { class: "soft" });
  head.append(status, name);

  const chart = new FieldChart(base, scope);
  const twin = new TwinEditor(base, scope);
  const steps = new Steps({ device: id }, scope);
  const presence = h("div", {});
  const messages = h("ol", { class: "messages" });
  const letters = h("div", {});
  const send = h("section", { class: "card" });
  const keys = me.may("admin") ? new Credentials(id, scope) : null;
  fill(
    content,
    h("section", { class: "card wide" }, chart.element),
    h("div", { class: "stack" }, send, h("section", { class: "card" }, h("h2", {}, "Commands"), steps.element)),
    h("div", { class: "stack" }, h("section", { class: "card" }, twin.element), h("section", { class: "card" }, h("h2", {}, "Presence"), presence), keys && h("section", { class: "card" }, keys.element)),
    h("section", { class: "card wide" }, h("h2", {}, "Last messages"), messages),
    h("section", { class: "card wide" }, h("h2", {}, "Dead letters"), letters),
  );
  let known = null;
  let formed = false;

  async function look() {
    try {
      known = await api.get(base, {}, scope.signal);
    } catch (problem) {
      if (problem.status !== 404 && problem.status !== 422) throw problem;
      fill(missing, problem.status === 404 ? "Nothing has been heard of this device yet. It shows up here as soon as it publishes something." : problem.message);
      return false;
    }
    fill(missing);
    content.hidden = false;
    draw();
    chart.begin(known.first_seen);
    chart.offer(known.streams);
    return true;
  }

  function draw() {
    fill(status, chip(known.status));
    fill(name, typeof known.metadata?.name === "string" ? known.metadata.name : "");
    const others = Object.entries(known.metadata ?? {}).filter(([key]) => key !== "name");
    const trip = known.round_trip;
    fill(
      facts,
      fact("Last seen", ago(known.last_seen)),
      fact("Messages", count(known.messages)),
      fact("First seen", ago(known.first_seen)),
      fact("Profile", known.profile || "default"),
      known.tags?.length > 0 && fact("Tags", known.tags.map((tag) => [h("a", { class: "tag", href: `#/devices?tag=${api.part(tag)}` }, tag), " "])),
      trip && fact("Round trip", `${duration(trip.p50)}, p99 ${duration(trip.p99)}`),
      others.map(([key, v]) => fact(key, h("span", { class: "clip" }, value(v)))),
    );
  }

  async function form() {
    if (formed || !me.may("operator")) return (send.hidden = !me.may("operator"));
    const { profiles } = await api.get("/profiles", {}, scope.signal);
    const profile = profiles.find((one) => one.name === known.profile) ?? profiles.find((one) => one.name === "default");
    formed = true;
    return fill(
      send,
      h("h2", {}, "Send a command"),
      commandForm(profile?.commands ?? {}, "Send", async (body) => {
        const command = await api.post(`${base}/commands`, body, scope.signal);
        steps.follow(command);
      }),
    );
  }

  async function past() {
    const { transitions } = await api.get(`${base}/presence`, { limit: 100 }, scope.signal);
    fill(presence, presenceLine(transitions));
  }

  async function refused() {
    const { dead_letters: found } = await api.get("/dead-letters", { device: id, limit: 20 }, scope.signal);
    fill(letters, letterList(found, scope, refused, { device: false }));
  }

  async function latest() {
    const stream = known.streams.default ? "default" : Object.keys(known.streams)[0];
    if (!stream) return fill(messages, h("li", { class: "soft" }, "It has sent no readings yet."));
    const { readings } = await api.get(`${base}/telemetry`, { stream, limit: MESSAGES }, scope.signal);
    return fill(messages, readings.map((one) => message(one.stream, one.received_at, one.values)));
  }

  function arrived(kind, event) {
    if (known === null) return refresh();
    known.messages += 1;
    known.last_seen = event.received_at;
    draw();
    messages.querySelector(".soft:only-child")?.remove();
    messages.prepend(message(kind === "event" ? `event/${event.stream}` : event.stream, event.received_at, event.values));
    while (messages.children.length > MESSAGES) messages.lastChild.remove();
    if (kind === "telemetry") chart.arrived(event);
    return undefined;
  }

  const refresh = () =>
    scope.attempt(
      async () => {
        if (!(await look())) return;
        await Promise.all([form(), chart.refresh(), twin.refresh(), steps.refresh(), past(), latest(), refused(), keys?.refresh()]);
      },
      (problem) => fill(missing, problem.message),
    );
  scope.refresh = refresh;
  refresh();
  scope.every(10_000, async () => {
    if (known === null) return;
    await look();
    await past();
  });
  scope.follow(
    { device: [id] },
    {
      telemetry: (event) => arrived("telemetry", event),
      event: (event) => arrived("event", event),
      presence: (event) => {
        if (known === null) return refresh();
        known.status = event.status;
        draw();
        return scope.attempt(past);
      },
      command: (event) => steps.step(event),
      twin: () => scope.attempt(() => twin.refresh()),
      dead_letter: () => scope.attempt(refused),
    },
  );
}

const fact = (title, what) => h("div", {}, h("dt", {}, title), h("dd", {}, what));

function message(stream, at, values) {
  const text = values === null ? "too large to be shown here" : brief(measured(values));
  return h("li", {}, h("details", {}, h("summary", {}, moment(at, true), h("b", {}, stream), h("span", { class: "text" }, text)), h("pre", {}, json(values))));
}
