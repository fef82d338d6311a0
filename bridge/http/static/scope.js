// The life of one view, from when it is shown until another one is.

import * as live from "./live.js";
import { toast } from "./toast.js";

export class Scope {
  constructor(query, path) {
    this.query = query;
    this.path = path;
    this.refresh = () => {};
    this.leaving = new AbortController();
    this.signal = this.leaving.signal;
  }

  leave() {
    this.leaving.abort();
  }

  get over() {
    return this.signal.aborted;
  }

  /** Call `work` now and every so many milliseconds after it has ended, until the view is left; not while nobody looks. */
  every(pause, work) {
    const turn = async () => {
      if (this.over) return;
      if (!document.hidden) await this.attempt(work);
      if (!this.over) setTimeout(turn, pause);
    };
    turn();
  }

  /** Call `work`. That a request failed is told in the frame of the page, where it also says that it works again. */
  async attempt(work, otherwise = () => {}) {
    try {
      return await work();
    } catch (error) {
      if (this.over || error.name === "AbortError") return undefined;
      if (error.status === undefined) throw error;
      return otherwise(error);
    }
  }

  /** Call `work`, which somebody has just asked for: that it failed is told there and then. */
  act(work) {
    return this.attempt(work, (problem) => toast(problem.message, "bad"));
  }

  /** Follow what happens; `refresh` when something was missed. */
  follow(filter, on) {
    live.follow(filter, on, () => this.refresh(), this.signal);
  }

  /** Put another query into the address, without leaving the view. */
  remember(query) {
    const known = new URLSearchParams(Object.entries(query).filter(([, text]) => text));
    const path = location.hash.split("?")[0] || "#/";
    history.replaceState(null, "", known.size ? `${path}?${known}` : path);
  }
}
