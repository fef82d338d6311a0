// What a device connects with: tokens of its own.

import * as api from "./api.js";
import { fill, h, table } from "./dom.js";
import { ago } from "./format.js";
import { showOnce } from "./shownonce.js";
import { sureButton } from "./surebutton.js";
import { toast } from "./toast.js";

export class Credentials {
  constructor(id, scope) {
    this.id = id;
    this.path = `/registry/${api.part(id)}/credentials`;
    this.scope = scope;
    this.list = h("div", {});
    this.made = h("div", { role: "status" });
    this.element = h(
      "div",
      {},
      h("h2", {}, "Credentials"),
      this.list,
      h("p", { class: "soft note" }, "The device connects with its id as the user name and a token as the password."),
      h("div", { class: "buttons" }, h("button", { onclick: () => scope.act(() => this.issue()) }, "Issue a token")),
      this.made,
    );
  }

  async refresh() {
    const { credentials } = await api.get(this.path, {}, this.scope.signal);
    fill(
      this.list,
      credentials.length
        ? table(
            ["Credential", "Issued", ""],
            credentials.map((one) => [
              h("span", { class: "id" }, one.credential_id),
              ago(one.created_at),
              h("div", { class: "buttons" }, sureButton("Revoke", "Revoke it now?", () => this.scope.act(() => this.revoke(one)))),
            ]),
          )
        : h("p", { class: "soft" }, "None is issued."),
    );
  }

  async issue() {
    const { token } = await api.post(this.path, undefined, this.scope.signal);
    showOnce(this.made, `The token of ${this.id}`, token);
    await this.refresh();
  }

  async revoke(one) {
    await api.remove(`${this.path}/${api.part(one.credential_id)}`, this.scope.signal);
    toast(`${one.credential_id} is revoked, and ${this.id} disconnected.`, "ok");
    fill(this.made);
    await this.refresh();
  }
}
