// What admins see to: new devices, who may come in, who did what, how the bridge is set.

import * as api from "../api.js";
import { choice, fill, h, table } from "../dom.js";
import { ago, count, moment } from "../format.js";
import { me } from "../me.js";
import { labelled } from "../sendform.js";
import { showOnce } from "../shownonce.js";
import { chip } from "../status.js";
import { sureButton } from "../surebutton.js";
import { toast } from "../toast.js";

/** place → [title, what draws it, and returns what fetches and draws it anew] */
const TABS = { "": ["New devices", newcomers], tokens: ["Tokens", tokens], audit: ["Audit trail", audit], settings: ["Settings", settings] };
const ROWS = 50;

export function admin(main, scope) {
  const place = scope.path[0] ?? "";
  const tabs = Object.entries(TABS).map(([name, [title]]) => h("a", { href: `#/admin/${name}`, "aria-current": name === place && "page" }, title));
  const body = h("div", { class: "stack" });
  fill(main, h("div", { class: "head" }, h("h1", {}, "Administration"), me.may("admin") && h("nav", { class: "segments", "aria-label": "Administration" }, tabs)), body);
  if (!me.may("admin")) return fill(body, h("p", { class: "soft empty" }, `This needs the role admin; ${me.name} is ${me.role}.`));
  const look = TABS[place]?.[1](body, scope);
  scope.refresh = () => scope.act(async () => look?.());
  return scope.refresh();
}

/** Make a change, say that it is made, and look again. */
const change = (scope, work, said) =>
  scope.act(async () => {
    await work();
    toast(said, "ok");
    await scope.refresh();
  });

// ------------------------------------------------------------------ new devices

const TAKEN = {
  accept: "Devices that nobody has registered are taken on as they come",
  quarantine: "Devices that nobody has registered wait here",
  refuse: "Devices that nobody has registered are refused",
};

function newcomers(body, scope) {
  const waiting = h("section", { class: "card" });
  const registered = h("p", { class: "note", role: "status" });
  const id = h("input", { id: "new-id", required: true, maxlength: 64, pattern: "[A-Za-z0-9._:\\-]+", title: "letters, digits and . _ : -", spellcheck: "false", autocomplete: "off" });
  const profile = choice({ id: "new-profile" }, [["", "by its id"]]);
  const tags = h("input", { id: "new-tags", spellcheck: "false", autocomplete: "off" });
  fill(
    body,
    waiting,
    h(
      "section",
      { class: "card" },
      h("h2", {}, "Register a device"),
      h(
        "form",
        { class: "row", onsubmit: register },
        labelled("Device id", id),
        labelled("Profile", profile),
        labelled("Tags", tags, "with spaces between"),
        h("button", { class: "primary" }, "Register"),
      ),
      registered,
    ),
  );

  const admit = (devices) => api.post("/registry", { devices }, scope.signal);

  function register(event) {
    event.preventDefault();
    return scope.act(async () => {
      await admit([{ device_id: id.value, profile: profile.value || undefined, tags: tags.value.split(/\s+/).filter(Boolean) }]);
      fill(registered, h("a", { class: "id", href: `#/devices/${api.part(id.value)}` }, id.value), " is registered. A token that it connects with is issued there.");
      event.target.reset();
      await look();
    });
  }

  async function look() {
    const [{ devices, next }, { settings: all }] = await Promise.all([
      api.get("/registry", { quarantined: true, limit: ROWS }, scope.signal),
      api.get("/settings", {}, scope.signal),
    ]);
    const policy = all.find(({ key }) => key === "registry.unknown")?.value;
    const approve = (entries) => {
      const all = entries.map(({ device_id }) => ({ device_id }));
      return change(scope, () => admit(all), `${all.length === 1 ? all[0].device_id : `${count(all.length)} devices`} may take part.`);
    };
    const refuse = ({ device_id: gone }) =>
      change(scope, () => api.remove(`/registry/${api.part(gone)}`, scope.signal), `${gone} is deleted. If it sends again it waits here again.`);
    fill(
      waiting,
      h("h2", {}, "Waiting for approval", devices.length > 0 && chip("silent", `${count(devices.length)}${next ? " and more" : ""}`)),
      devices.length
        ? table(
            ["Device", "Profile", "What it sent", ""],
            devices.map((one) => [
              h("a", { class: "id", href: `#/devices/${api.part(one.device_id)}` }, one.device_id),
              one.profile,
              h("a", { href: `#/letters?device=${api.part(one.device_id)}` }, "its dead letters"),
              h("div", { class: "buttons" }, h("button", { onclick: () => approve([one]) }, "Approve"), sureButton("Delete", "Delete it?", () => refuse(one))),
            ]),
          )
        : h("p", { class: "soft" }, "No device waits."),
      devices.length > 1 && h("div", { class: "buttons" }, h("button", { onclick: () => approve(devices) }, `Approve all ${count(devices.length)}`)),
      h("p", { class: "soft note" }, TAKEN[policy], " (", h("code", {}, `registry.unknown = ${policy}`), ")."),
    );
  }

  scope.act(async () => {
    const { profiles } = await api.get("/profiles", {}, scope.signal);
    profile.append(...profiles.map(({ name }) => h("option", { value: name }, name)));
  });
  // What a device in quarantine sends becomes a dead letter.
  scope.follow({ kind: ["dead_letter"] }, { dead_letter: (letter) => letter.reason === "quarantined" && !body.querySelector(".sure") && scope.refresh() });
  return look;
}

// ------------------------------------------------------------------ tokens

function tokens(body, scope) {
  const list = h("section", { class: "card" });
  const made = h("div", { role: "status" });
  const name = h("input", { id: "token-name", required: true, maxlength: 64, spellcheck: "false", autocomplete: "off", placeholder: "wall-screen" });
  const role = choice({ id: "token-role" }, [["viewer", "viewer: sees everything"], ["operator", "operator: commands, too"], ["admin", "admin: everything"]]);

  async function look() {
    const { tokens: all } = await api.get("/tokens", {}, scope.signal);
    const revoke = (one) => change(scope, () => api.remove(`/tokens/${api.part(one.name)}`, scope.signal), `${one.name} is revoked.`);
    fill(
      list,
      h("h2", {}, "Tokens"),
      all.length
        ? table(
            ["Name", "Role", "Made", "Last used", ""],
            all.map((one) => [
              one.name,
              one.role,
              ago(one.created_at),
              one.used_at ? ago(one.used_at) : "never",
              one.revoked_at ? chip("cancelled", "revoked") : sureButton("Revoke", "Revoke it now?", () => revoke(one)),
            ]),
          )
        : h("p", { class: "soft" }, "None is stored."),
    );
  }

  function make(event) {
    event.preventDefault();
    return scope.act(async () => {
      const { token } = await api.post("/tokens", { name: name.value.trim(), role: role.value }, scope.signal);
      showOnce(made, `The token of ${name.value.trim()}`, token);
      event.target.reset();
      await look();
    });
  }

  fill(body, list, h("section", { class: "card" }, h("h2", {}, "Make a token"), h("form", { class: "row", onsubmit: make }, labelled("Name", name), labelled("Role", role), h("button", { class: "primary" }, "Make")), made));
  return look;
}

// ------------------------------------------------------------------ who did what

/** What the API calls an act → what people call it. */
const ACTS = {
  login: "logged in",
  logout: "logged out",
  "POST /devices/{device_id}/commands": "sent a command",
  "POST /commands/{command_id}/cancel": "cancelled a command",
  "POST /rollouts": "sent a command to many",
  "POST /rollouts/{rollout_id}/cancel": "stopped a rollout",
  "POST /schedules": "made a schedule",
  "POST /schedules/{schedule_id}/cancel": "cancelled a schedule",
  "PATCH /devices/{device_id}/twin": "changed a twin",
  "POST /dead-letters/replay": "replayed dead letters",
  "POST /dead-letters/{letter_id}/replay": "replayed a dead letter",
  "DELETE /dead-letters/{letter_id}": "dropped a dead letter",
  "POST /registry": "registered devices",
  "PATCH /registry/{device_id}": "changed a device",
  "PUT /registry/{device_id}/admission": "decided on a device",
  "DELETE /registry/{device_id}": "deleted a device",
  "POST /registry/{device_id}/credentials": "issued a credential",
  "DELETE /registry/{device_id}/credentials/{credential_id}": "revoked a credential",
  "DELETE /registry/{device_id}/credentials": "revoked all credentials",
  "POST /tokens": "made a token",
  "DELETE /tokens/{name}": "revoked a token",
};

function audit(body, scope) {
  let shown = [];
  const list = h("section", { class: "card" });
  fill(body, list);

  async function page(before) {
    const found = await api.get("/audit", { limit: ROWS, before }, scope.signal);
    shown = before ? [...shown, ...found.audit] : found.audit;
    fill(
      list,
      h("h2", {}, "Who did what"),
      shown.length
        ? table(
            ["When", "Who", "Did", "To", "From"],
            shown.map((one) => [moment(one.at), one.who, h("span", { title: one.action }, ACTS[one.action] ?? one.action), [one.target && h("span", { class: "id" }, one.target, " "), h("span", { class: "soft" }, one.detail)], h("span", { class: "soft" }, one.address)]),
          )
        : h("p", { class: "soft" }, "Nobody has changed anything yet."),
      found.next && h("button", { class: "quiet", onclick: () => scope.act(() => page(found.next)) }, "Show earlier ones"),
    );
  }

  return () => page();
}

// ------------------------------------------------------------------ settings

function settings(body, scope) {
  let all = [];
  const list = h("div", {});
  const search = h("input", { type: "search", "data-search": true, placeholder: "Part of a name  ( / )", "aria-label": "Search", oninput: draw });
  const changed = h("input", { type: "checkbox", id: "changed", onchange: draw });
  fill(body, h("section", { class: "card" }, h("div", { class: "filters", role: "search" }, search, h("label", { class: "check", for: "changed" }, changed, "only what is not the default")), list));

  function draw() {
    const found = all.filter(({ key, origin }) => key.includes(search.value.trim().toLowerCase()) && !(changed.checked && origin === "default"));
    fill(
      list,
      found.length
        ? table(["Setting", "Value", "From"], found.map(({ key, value: v, origin }) => [h("code", {}, key), v === null ? h("span", { class: "soft" }, "not set") : h("code", {}, typeof v === "string" ? v : JSON.stringify(v)), h("span", { class: origin === "default" ? "soft" : "" }, origin)]))
        : h("p", { class: "soft" }, "No setting fits."),
      h("p", { class: "soft note" }, "They are read when the bridge starts; secrets are masked. ", h("code", {}, "mqtt-bridge config --example"), " explains each."),
    );
  }

  return async () => {
    all = (await api.get("/settings", {}, scope.signal)).settings;
    draw();
  };
}
