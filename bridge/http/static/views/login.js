// The door: a token opens a session.

import * as api from "../api.js";
import { fill, h } from "../dom.js";

export function login(main, scope) {
  const token = h("input", { type: "password", id: "token", required: true, autocomplete: "current-password", spellcheck: "false" });
  const trouble = h("p", { class: "trouble", role: "alert" });
  const enter = h("button", { class: "primary" }, "Log in");

  async function submit(event) {
    event.preventDefault();
    enter.disabled = true;
    await scope.attempt(
      async () => {
        await api.post("/session", { token: token.value.trim() }, scope.signal);
        dispatchEvent(new Event("login"));
      },
      (problem) => {
        fill(trouble, problem.message);
        token.select();
      },
    );
    enter.disabled = false;
  }

  fill(
    main,
    h(
      "form",
      { class: "login", onsubmit: submit },
      h("h1", {}, "Log in"),
      h("p", { class: "soft" }, "The bridge showed an admin's token when it was first started. ", h("code", {}, "mqtt-bridge tokens add"), " makes more."),
      h("label", { for: "token" }, "Token"),
      token,
      trouble,
      enter,
    ),
  );
  token.focus();
}
