// The page's frame: who is here, which view is shown, and whether what it shows is true.

import * as api from "./api.js";
import { fill, h } from "./dom.js";
import { clock } from "./format.js";
import * as live from "./live.js";
import { Scope } from "./scope.js";
import { toast } from "./toast.js";
import { me } from "./me.js";
import { shape } from "./status.js";

const main = document.getElementById("main");
const nav = document.getElementById("nav");

/** [place, title, view, who is shown the way there] */
const PLACES = [
  ["", "Overview", "overview"],
  ["devices", "Devices", "devices"],
  ["commands", "Commands", "commands"],
  ["letters", "Dead letters", "letters"],
  ["admin", "Admin", "admin", "admin"],
];

let scope = null;

/** Leave the view that is shown and show the one that the address names. A view's program is fetched when it is first
 * wanted. */
async function show() {
  scope?.leave();
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const [place, ...rest] = path.split("/").map(decode);
  scope = new Scope(new URLSearchParams(query), rest);
  drawNav(place);
  const found = PLACES.find(([name]) => name === place);
  const view = !me.role ? "login" : place === "devices" && rest[0] ? "device" : found?.[2];
  document.title = `${found?.[1] ?? "MQTT Agent Bridge"} · ${location.hostname}`;
  if (!view) return fill(main, h("h1", {}, "There is no such page"), h("p", {}, h("a", { href: "#/" }, "To the overview")));
  const shown = scope;
  try {
    const program = await import(`./views/${view}.js`);
    return shown.over ? undefined : program[view](fill(main), shown);
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;
    // The bridge is away. A browser does not ask twice for a program that it could not get: only a new page does.
    return fill(main, h("h1", {}, "This view could not be fetched"), h("p", {}, h("button", { onclick: () => location.reload() }, "Load the page again")));
  }
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function drawNav(place) {
  const link = ([name, title]) =>
    h("a", { href: `#/${name}`, "aria-current": name === place && "page" }, title);
  fill(nav, PLACES.filter(([, , , role]) => me.may(role ?? "viewer")).map(link));
  fill(
    document.getElementById("who"),
    me.role && h("span", { class: "name", title: `role ${me.role}` }, me.name === "local" ? "local, no token" : `${me.name} · ${me.role}`),
    me.role && me.required && h("button", { class: "quiet", onclick: logout }, "Log out"),
  );
}

async function logout() {
  await api.remove("/session").catch((problem) => toast(problem.message, "bad"));
  me.set(null);
  show();
}

async function enter() {
  try {
    me.set(await api.get("/session"));
  } catch (problem) {
    me.set(null);
    if (problem.status === 0) return setTimeout(enter, 2000);
  }
  return show();
}

// ------------------------------------------------------------------ whether it is there

const LINKS = { live: ["online", "Live"], connecting: ["silent", "Connecting"], lost: ["offline", "Connection lost"] };

function drawState(state, before = {}) {
  const [status, word] = LINKS[state.link];
  document.documentElement.dataset.link = state.link;
  fill(document.getElementById("link"), shape(status), h("span", {}, word));
  const notices = [];
  if (state.link === "lost") {
    notices.push(
      notice("No connection to the bridge", `since ${clock(state.since / 1000)}. What you see may be old. Trying again.`),
    );
  } else if (state.fault) {
    notices.push(
      notice(
        "The database is away",
        `(${state.fault}). What devices send is kept, in the spool or by themselves, until it is back. Commands cannot be sent now.`,
      ),
    );
  }
  fill(document.getElementById("notices"), notices);
  if (before.link === "lost" && state.link !== "lost") toast("Connected again. What happened meanwhile has been fetched.", "ok");
  if (before.fault && !state.fault) {
    toast("The database is back.", "ok");
    scope?.refresh();
  }
}

const notice = (title, text) => h("div", { class: "notice" }, shape("offline"), h("p", {}, h("strong", {}, title), " ", text));

api.whenStranger(() => {
  if (!me.role) return;
  me.set(null);
  show();
});
addEventListener("hashchange", () => {
  show();
  scrollTo(0, 0);
  main.focus({ preventScroll: true });
});
addEventListener("login", enter);
addEventListener("keydown", (event) => {
  const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName);
  const search = document.querySelector("[data-search]");
  if (event.key === "/" && !typing && search) {
    event.preventDefault();
    search.focus();
  }
});
live.watchState(drawState);
drawState(live.state);
live.start();
enter();
