// A device's twin: what it is asked to be beside what it says it is.

import * as api from "./api.js";
import { fill, h } from "./dom.js";
import { ago, json, value } from "./format.js";
import { me } from "./me.js";
import { chip } from "./status.js";
import { toast } from "./toast.js";

export class TwinEditor {
  constructor(base, scope) {
    this.path = `${base}/twin`;
    this.scope = scope;
    this.head = h("h2", {}, "Twin");
    this.table = h("div", {});
    this.editor = h("div", {});
    this.element = h("div", {}, this.head, this.table, this.editor);
  }

  async refresh() {
    const { data, etag } = await api.request("GET", this.path, { signal: this.scope.signal });
    this.twin = data;
    this.etag = etag;
    this.draw();
  }

  draw() {
    const { desired, reported, delta, desired_at: asked, reported_at: said } = this.twin;
    const open = leaves(delta).length;
    const none = !leaves(desired).length && !leaves(reported).length;
    fill(this.head, "Twin", !none && chip(open ? "silent" : "succeeded", open ? `${open} to be done` : "as desired"));
    const rows = merged(desired, reported);
    fill(
      this.table,
      none
        ? h("p", { class: "soft" }, "Nothing is desired of it, and it has reported nothing.")
        : h(
            "table",
            { class: "list twin" },
            h("thead", {}, h("tr", {}, ["", "Desired", "Reported"].map((title) => h("th", { scope: "col" }, title)))),
            h(
              "tbody",
              {},
              rows.map(([path, want, is]) => {
                const differs = want !== undefined && want !== is;
                return h("tr", { class: differs ? "differs" : "" }, h("th", { scope: "row" }, path), h("td", {}, value(want)), h("td", {}, is === undefined && differs ? "not reported" : value(is), differs && h("span", { class: "unseen" }, " not yet as desired")));
              }),
            ),
          ),
      !none && h("p", { class: "soft" }, asked && ["desired version ", this.twin.desired_version, ", ", ago(asked)], asked && said && "; ", said && ["reported ", ago(said)]),
    );
    if (!this.editing) fill(this.editor, me.may("operator") && h("button", { onclick: () => this.edit() }, "Change what is desired"));
  }

  edit() {
    this.editing = { before: this.twin.desired, etag: this.etag };
    const text = h("textarea", { rows: Math.min(16, Math.max(5, json(this.twin.desired).split("\n").length + 1)), spellcheck: "false", "aria-label": "Desired, as JSON" });
    text.value = json(this.twin.desired);
    const trouble = h("p", { class: "trouble", role: "alert" });
    const save = async (event) => {
      event.preventDefault();
      let wanted;
      try {
        wanted = JSON.parse(text.value);
        if (wanted === null || typeof wanted !== "object" || Array.isArray(wanted)) throw new SyntaxError("it must be an object: { … }");
      } catch (error) {
        return fill(trouble, `This is not JSON yet: ${error.message}`);
      }
      return this.scope.attempt(
        () => this.save(wanted),
        (problem) => (problem.status === 412 ? this.conflict(trouble) : fill(trouble, problem.message)),
      );
    };
    fill(
      this.editor,
      h(
        "form",
        { class: "edit", onsubmit: save },
        text,
        trouble,
        h("div", { class: "buttons" }, h("button", { class: "primary" }, "Save"), h("button", { type: "button", class: "quiet", onclick: () => this.done() }, "Leave it")),
      ),
    );
    text.focus();
  }

  async save(wanted) {
    const patch = patchOf(this.editing.before, wanted);
    if (Object.keys(patch).length) {
      const { data, etag } = await api.request("PATCH", this.path, {
        body: patch,
        headers: { "If-Match": this.editing.etag, "Content-Type": "application/merge-patch+json" },
        signal: this.scope.signal,
      });
      this.twin = data;
      this.etag = etag;
      toast("Stored, and on its way to the device.", "ok");
    }
    this.done();
  }

  /** Somebody else was faster. What was typed stays; from here on it is compared with what is desired now. */
  async conflict(trouble) {
    await this.refresh();
    this.editing = { before: this.twin.desired, etag: this.etag };
    fill(trouble, `Desired has been changed meanwhile: it is version ${this.twin.desired_version} now, as shown above. What you typed is still here and nothing is stored. Save again to have it your way.`);
  }

  done() {
    this.editing = null;
    this.draw();
    this.editor.querySelector("button")?.focus();
  }
}

/** The merge patch (RFC 7396) that makes `after` of `before`. */
export function patchOf(before, after) {
  const patch = {};
  for (const key of Object.keys(before)) if (!Object.hasOwn(after, key)) patch[key] = null;
  for (const [key, now] of Object.entries(after)) {
    const was = Object.hasOwn(before, key) ? before[key] : undefined;
    if (isObject(was) && isObject(now)) {
      const inner = patchOf(was, now);
      if (Object.keys(inner).length) patch[key] = inner;
    } else if (JSON.stringify(was) !== JSON.stringify(now)) patch[key] = now;
  }
  return patch;
}

const isObject = (v) => v !== null && typeof v === "object" && !Array.isArray(v);

function leaves(values, path = "") {
  return Object.entries(values).flatMap(([key, v]) => {
    const here = path ? `${path}.${key}` : key;
    return isObject(v) && Object.keys(v).length ? leaves(v, here) : [[here, isObject(v) || Array.isArray(v) ? JSON.stringify(v) : v]];
  });
}

function merged(desired, reported) {
  const want = new Map(leaves(desired));
  const is = new Map(leaves(reported));
  return [...new Set([...want.keys(), ...is.keys()])].map((path) => [path, want.get(path), is.get(path)]);
}
