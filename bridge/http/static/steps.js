// Commands, each with its steps and their times.

import * as api from "./api.js";
import { fill, h } from "./dom.js";
import { ago, brief, date, duration, json, moment } from "./format.js";
import { me } from "./me.js";
import { chip, shape } from "./status.js";
import { sureButton } from "./surebutton.js";

const FINAL = new Set(["succeeded", "failed", "expired", "cancelled"]);
const SHOWN = 10;

/** The latest commands of `wanted` (the API's filter: device, rollout, status), kept up to date by `step`. */
export class Steps {
  constructor(wanted, scope, { showDevice = false } = {}) {
    this.wanted = wanted;
    this.scope = scope;
    this.showDevice = showDevice;
    this.entries = new Map();
    this.next = null;
    this.list = h("ol", { class: "commands" });
    this.more = h("button", { class: "quiet", hidden: true, onclick: () => scope.attempt(() => this.older()) }, "Show earlier ones");
    this.element = h("div", {}, this.list, this.more);
  }

  async refresh() {
    const page = await api.get("/commands", { ...this.wanted, limit: SHOWN }, this.scope.signal);
    for (const command of [...page.commands].reverse()) this.take(command);
    if (this.next === null) this.next = page.next;
    this.more.hidden = !this.next;
    if (!this.entries.size) fill(this.list, h("li", { class: "soft" }, "None yet."));
  }

  async older() {
    const page = await api.get("/commands", { ...this.wanted, limit: 50, before: this.next }, this.scope.signal);
    this.next = page.next;
    this.more.hidden = !this.next;
    for (const command of page.commands) this.take(command, false);
  }

  /** A command that was just sent: it is shown with all its steps. */
  follow(command) {
    this.take(command).open();
  }

  take(command, first = true) {
    let entry = this.entries.get(command.command_id);
    if (entry) {
      entry.draw(command);
    } else {
      if (!this.entries.size) fill(this.list);
      entry = new Entry(command, this.scope, this.showDevice);
      this.entries.set(command.command_id, entry);
      if (first) this.list.prepend(entry.element);
      else this.list.append(entry.element);
    }
    return entry;
  }

  /** A command has made a step. */
  step(event) {
    const entry = this.entries.get(event.id);
    if (entry) entry.look();
    else this.scope.attempt(() => this.refresh());
  }
}

class Entry {
  constructor(command, scope, showDevice) {
    this.scope = scope;
    this.showDevice = showDevice;
    this.id = command.command_id;
    this.summary = h("summary", {});
    this.body = h("div", { class: "steps" });
    this.details = h("details", { ontoggle: () => this.details.open && this.look() }, this.summary, this.body);
    this.element = h("li", { "data-command": this.id }, this.details);
    this.draw(command);
  }

  draw(command) {
    this.command = command;
    fill(
      this.summary,
      chip(command.status),
      this.showDevice && h("a", { class: "id", href: `#/devices/${api.part(command.device_id)}` }, command.device_id),
      h("b", {}, command.name),
      command.args !== null && h("span", { class: "args clip soft" }, brief(command.args)),
      FINAL.has(command.status) && h("span", { class: "soft took" }, duration((date(command.updated_at) - date(command.created_at)) / 1000)),
      ago(command.created_at),
    );
  }

  open() {
    this.details.open = true;
    this.look();
  }

  /** Fetch it with its steps. Steps come quickly one after the other: while one answer is awaited, no other is asked for. */
  async look() {
    if (this.looking) return (this.again = true);
    this.looking = true;
    do {
      this.again = false;
      await this.scope.attempt(async () => {
        const { command, events } = await api.get(`/commands/${api.part(this.id)}`, {}, this.scope.signal);
        this.draw(command);
        if (this.details.open) this.drawSteps(command, events);
      });
    } while (this.again && !this.scope.over);
    return (this.looking = false);
  }

  drawSteps(command, events) {
    const began = events.length ? date(events[0].at) : date(command.created_at);
    fill(
      this.body,
      h(
        "ol",
        {},
        events.map((step) =>
          h(
            "li",
            {},
            shape(step.status),
            h("b", {}, step.status.replaceAll("_", " ")),
            moment(step.at, true),
            h("span", { class: "soft" }, date(step.at) > began ? `+${duration((date(step.at) - began) / 1000)}` : ""),
            h("span", { class: "soft" }, step.cause?.replaceAll("_", " ")),
          ),
        ),
      ),
      command.error && h("p", { class: "trouble" }, command.error),
      command.result !== null && command.result !== undefined && h("pre", {}, json(command.result)),
      !FINAL.has(command.status) && me.may("operator") && sureButton("Cancel it", "Really cancel it?", () => this.cancel()),
    );
  }

  cancel() {
    return this.scope.act(async () => {
      this.draw(await api.post(`/commands/${api.part(this.id)}/cancel`, undefined, this.scope.signal));
      await this.look();
    });
  }
}
