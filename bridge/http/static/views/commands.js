// One command for many devices, now or at a time: who gets it, how far it is, what became of each. And the latest
// commands of all.

import * as api from "../api.js";
import { choice, fill, h, settled } from "../dom.js";
import { ago, brief, count, moment } from "../format.js";
import { me } from "../me.js";
import { commandForm, labelled } from "../sendform.js";
import { Steps } from "../steps.js";
import { chip, shape, tone } from "../status.js";
import { sureButton } from "../surebutton.js";
import { toast } from "../toast.js";

const STATUSES = ["online", "silent", "offline", "unknown"];
const ORDER = ["succeeded", "failed", "expired", "cancelled", "in_progress", "delivered", "sent", "queued"];

export function commands(main, scope) {
  if (scope.path[0]) return rollout(main, scope, scope.path[0]);
  const send = h("section", { class: "card" });
  const rollouts = h("div", {});
  const schedules = h("ol", { class: "commands" });
  const steps = new Steps({}, scope, { showDevice: true });
  fill(
    main,
    h("h1", {}, "Commands"),
    h(
      "div",
      { class: me.may("operator") ? "columns even" : "" },
      me.may("operator") && send,
      h("div", { class: "stack" }, card("Rollouts", rollouts), card("Schedules", schedules), card("Latest commands", steps.element)),
    ),
  );

  async function list() {
    const { rollouts: found } = await api.get("/rollouts", { limit: 10 }, scope.signal);
    // Those that run say how far they are only when they are asked one by one.
    const whole = await Promise.all(found.map((one) => api.get(`/rollouts/${api.part(one.rollout_id)}`, {}, scope.signal)));
    fill(
      rollouts,
      whole.length
        ? h("ol", { class: "rollouts" }, whole.map((one) => h("li", {}, rolloutHead(one), progress(one))))
        : h("p", { class: "soft" }, "None yet. A command to many devices goes to a few of them at a time, and can be stopped."),
    );
  }

  async function planned() {
    const { schedules: found } = await api.get("/schedules", { limit: 20 }, scope.signal);
    if (schedules.contains(document.activeElement) || schedules.querySelector("[open]")) return;
    fill(schedules, found.length ? found.map((one) => schedule(one, scope, planned)) : h("li", { class: "soft" }, "None yet. A command can be sent later, or again and again."));
  }

  scope.refresh = () => {
    for (const work of [list, planned, () => steps.refresh()]) scope.attempt(work);
  };
  scope.every(10_000, planned);
  scope.attempt(async () => fill(send, h("h2", {}, "Send to many"), ...(await bulk(scope))));
  scope.every(3_000, list);
  scope.attempt(() => steps.refresh());
  scope.follow({ kind: ["command"] }, { command: (event) => steps.step(event) });
}

const card = (title, what) => h("section", { class: "card" }, h("h2", {}, title), what);

/** The form: a target, its preview, the command. */
async function bulk(scope) {
  const { profiles } = await api.get("/profiles", {}, scope.signal);
  const who = choice({ id: "bulk-who" }, [["filter", "those that fit"], ["named", "those that I name"], ["everyone", "every device"]]);
  const tag = h("input", { id: "bulk-tag", maxlength: 64, spellcheck: "false" });
  const profile = choice({ id: "bulk-profile" }, [["", "any"], ...profiles.map(({ name }) => [name])]);
  const status = choice({ id: "bulk-status" }, [["", "any"], ...STATUSES.map((name) => [name])], "online");
  const named = h("textarea", { id: "bulk-named", rows: 3, spellcheck: "false", placeholder: "fridge-7 fridge-8" });
  const atOnce = h("input", { id: "bulk-at-once", type: "number", min: 1, max: 1000, value: 100 });
  const stopAfter = h("input", { id: "bulk-stop", pattern: "[1-9][0-9]*|[0-9]+(\\.[0-9]+)?%", placeholder: "never; 5 or 10%", title: "a number, or a percentage as 10%" });
  const when = choice({ id: "bulk-when", onchange: drawWhen }, [["now"], ["once", "once, later"], ["cron", "again and again"]]);
  const at = h("input", { id: "bulk-at", type: "datetime-local", required: true });
  const cron = h("input", { id: "bulk-cron", required: true, maxlength: 200, placeholder: "30 2 * * 1-5", spellcheck: "false", autocomplete: "off" });
  const zone = h("input", { id: "bulk-zone", required: true, maxlength: 64, spellcheck: "false", value: Intl.DateTimeFormat().resolvedOptions().timeZone });
  const times = h("div", { class: "fields two" });
  const preview = h("div", { class: "preview", role: "status" });
  const filters = h("div", { class: "fields three" }, labelled("Status", status), labelled("Profile", profile), labelled("Tag", tag));
  const names = labelled("Devices", named, "their ids, with spaces or lines between");
  const form = h("div", {});
  let seen = null; // the target that the preview has shown

  function target() {
    if (who.value === "everyone") return { everyone: true };
    if (who.value === "named") return { devices: named.value.split(/[\s,]+/).filter(Boolean) };
    const wanted = { tag: tag.value.trim(), profile: profile.value, status: status.value };
    return Object.fromEntries(Object.entries(wanted).filter(([, text]) => text));
  }

  let count_ = 0;
  async function look() {
    filters.hidden = who.value !== "filter";
    names.hidden = who.value !== "named";
    const mine = ++count_;
    const asked = target();
    seen = null;
    if (!Object.values(asked).flat().length) return fill(preview, h("p", { class: "soft" }, "Say which devices it is for."));
    return scope.attempt(
      async () => {
        const { total, first } = await api.post("/rollouts/preview", asked, scope.signal);
        if (mine !== count_) return;
        seen = JSON.stringify(asked);
        fill(
          preview,
          h("p", {}, h("b", {}, count(total)), total === 1 ? " device gets it now" : " devices would get it now"),
          first.length > 0 && h("p", { class: "ids" }, first.map((id) => h("span", { class: "tag" }, id)), total > first.length && h("span", { class: "soft" }, ` and ${count(total - first.length)} more`)),
        );
      },
      (problem) => mine === count_ && fill(preview, h("p", { class: "trouble" }, problem.message)),
    );
  }

  function drawForm() {
    const known = profiles.find(({ name }) => name === profile.value) ?? profiles.find(({ name }) => name === "default");
    fill(
      form,
      commandForm(known?.commands ?? {}, "Send to these devices", async (body) => {
        const asked = target();
        if (seen !== JSON.stringify(asked)) await look();
        const order = { ...body, target: asked, at_once: Number(atOnce.value) || undefined, stop_after: stopAfter.value.trim() || undefined };
        if (when.value !== "now") {
          const time = when.value === "once" ? { at: new Date(at.value).toISOString() } : { cron: cron.value.trim(), tz: zone.value.trim() };
          await api.post("/schedules", { ...order, ...time }, scope.signal);
          toast("It is planned.", "ok");
          return scope.refresh();
        }
        const made = await api.post("/rollouts", order, scope.signal);
        toast(`On its way to ${count(made.total)} devices.`, "ok");
        return (location.hash = `#/commands/${api.part(made.rollout_id)}`);
      }),
    );
    form.querySelector("form button").before(
      h("div", { class: "fields two" }, labelled("At once", atOnce, "unfinished ones"), labelled("Stop after failures", stopAfter)),
      labelled("When", when),
      times,
    );
    drawWhen();
  }

  function drawWhen() {
    const fields = { now: [], once: [labelled("At", at, "your time")], cron: [labelled("Minute, hour, day, month, weekday", cron), labelled("Time zone", zone)] };
    fill(times, fields[when.value]);
    fill(form.querySelector("button.primary"), when.value === "now" ? "Send to these devices" : "Plan it");
  }

  for (const input of [tag, named]) input.addEventListener("input", settled(look));
  for (const input of [who, profile, status]) input.addEventListener("change", look);
  profile.addEventListener("change", drawForm);
  drawForm();
  look();
  return [labelled("Who gets it", who), filters, names, preview, form];
}

/** A schedule that opens: whom it is for, and what became of its last runs. */
function schedule(one, scope, refresh) {
  const body = h("div", { class: "steps" });
  const path = `/schedules/${api.part(one.schedule_id)}`;
  const open = async () => {
    const { runs, args, target } = await api.get(path, {}, scope.signal);
    const cancel = () =>
      scope.act(async () => {
        await api.post(`${path}/cancel`, undefined, scope.signal);
        details.open = false;
        toast(`${one.name} is not sent again.`, "ok");
        await refresh();
      });
    fill(
      body,
      h("p", {}, "To ", targetText(target), args !== null && [", with ", brief(args)]),
      h("ol", {}, runs.map((run) => h("li", {}, shape(RUNS[run.outcome]), h("b", {}, run.outcome), moment(run.due_at), h("span", {}), run.outcome === "started" ? h("a", { href: `#/commands/${api.part(run.detail)}` }, "its rollout") : h("span", { class: "soft" }, run.detail)))),
      !runs.length && h("p", { class: "soft" }, "It has not run yet."),
      one.status === "active" && me.may("operator") && sureButton("Cancel it", "Really cancel it?", cancel),
    );
  };
  const details = h(
    "details",
    { ontoggle: () => details.open && scope.attempt(open) },
    h("summary", {}, chip(one.status), h("b", {}, one.name), h("span", { class: "soft clip" }, one.cron ? [h("code", {}, one.cron), ` ${one.tz}`] : "once"), one.next_at && h("span", { class: "next soft" }, "next ", moment(one.next_at))),
    body,
  );
  return h("li", { "data-schedule": one.schedule_id }, details);
}

const RUNS = { started: "succeeded", skipped: "expired", refused: "failed" };

// ------------------------------------------------------------------ one rollout

function rollout(main, scope, id) {
  const title = h("div", { class: "head" });
  const head = h("div", {});
  const filter = h("div", { class: "segments", role: "group", "aria-label": "Status" });
  let steps = null;
  let status = "";
  let shown = null;
  const list = h("div", {});
  fill(main, h("p", { class: "crumb" }, h("a", { href: "#/commands" }, "Commands")), title, head, h("section", { class: "card" }, h("h2", {}, "What became of each"), filter, list));

  function choose(wanted) {
    status = wanted;
    steps = new Steps({ rollout: id, status }, scope, { showDevice: true });
    fill(list, steps.element);
    scope.attempt(() => steps.refresh());
  }

  function draw(one) {
    // Not every second: the button asks once more.
    if (one.status !== shown) fill(title, h("h1", {}, one.name), chip(one.status), one.status === "running" && me.may("operator") && stop);
    shown = one.status;
    fill(
      head,
      h("p", { class: "soft" }, targetText(one.target), `, ${count(one.at_once)} at once`, one.stop_after && `, stops after ${one.stop_after} failures`, one.cause && `. ${one.cause}`),
      h("section", { class: "card" }, progress(one)),
    );
    fill(
      filter,
      ["", ...ORDER].filter((name) => !name || one.counts[name] || name === status).map((name) =>
        h("button", { "aria-pressed": String(name === status), onclick: () => (choose(name), draw(one)) }, name && shape(name), h("span", {}, name.replaceAll("_", " ") || "all"), name && h("small", {}, count(one.counts[name] ?? 0))),
      ),
    );
  }

  const stop = sureButton("Stop it", "Really stop it?", () => scope.act(async () => draw(await api.post(`/rollouts/${api.part(id)}/cancel`, undefined, scope.signal))));
  const look = async () => draw(await api.get(`/rollouts/${api.part(id)}`, {}, scope.signal));
  scope.refresh = () => {
    scope.attempt(look);
    choose(status);
  };
  choose("");
  scope.every(1_000, async () => {
    try {
      await look();
    } catch (problem) {
      if (problem.status !== 404) throw problem;
      fill(title, h("h1", {}, "There is no such rollout"));
      scope.leave();
    }
  });
  scope.follow({ kind: ["command"] }, { command: (event) => (steps.entries.has(event.id) || steps.entries.size < 10) && steps.step(event) });
}

function rolloutHead(one) {
  return h("p", { class: "rollout-head" }, chip(one.status), h("a", { href: `#/commands/${api.part(one.rollout_id)}` }, h("b", {}, one.name)), h("span", { class: "soft clip" }, targetText(one.target)), ago(one.created_at));
}

function targetText(target) {
  if (target.everyone) return "every device";
  if (target.devices?.length) return target.devices.length === 1 ? target.devices[0] : `${count(target.devices.length)} named devices`;
  return Object.entries(target).map(([key, text]) => `${key} ${text}`).join(", ");
}

/** A bar in which each device has its place, and the numbers in words. */
function progress(one) {
  const total = Math.max(one.total, Object.values(one.counts).reduce((a, b) => a + b, 0) + one.refused);
  const parts = ORDER.filter((name) => one.counts[name]).map((name) => [name, one.counts[name]]);
  const rest = total - parts.reduce((sum, [, n]) => sum + n, 0) - one.refused;
  const share = Math.floor((one.ended / (total || 1)) * 100);
  return [
    h(
      "div",
      { class: "fleet-bar", role: "progressbar", "aria-valuenow": share, "aria-valuemin": 0, "aria-valuemax": 100, "aria-label": "Ended" },
      parts.map(([name, n]) => h("i", { class: `${tone(name)} ${name}`, style: { "flex-grow": String(n) } })),
      one.refused > 0 && h("i", { class: "bad", style: { "flex-grow": String(one.refused) } }),
      rest > 0 && h("i", { class: "rest", style: { "flex-grow": String(rest) } }),
    ),
    h(
      "ul",
      { class: "legend" },
      h("li", {}, h("b", {}, count(one.ended)), ` of ${count(total)} ended, ${share} %`),
      parts.map(([name, n]) => h("li", {}, shape(name), h("b", {}, count(n)), ` ${name.replaceAll("_", " ")}`)),
      one.refused > 0 && h("li", {}, shape("failed"), h("b", {}, count(one.refused)), " not accepted"),
    ),
  ];
}
