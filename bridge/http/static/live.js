// The connection to the bridge: what happens comes by server-sent events; whether it is there, and whether its database
// is, by asking it. A connection that hangs says nothing by itself.

const EVERY = 4_000;
const PATIENCE = 3_500;
const AGAIN = 2_000;

/** `link`: connecting, live or lost, and since when (Date). `fault`: what is wrong with the database, or null. */
export const state = { link: "connecting", since: new Date(), fault: null };

const watchers = new Set();
let current = null;

/** Have `call` called when `state` has changed. */
export const watchState = (call) => watchers.add(call);

function change(next) {
  if (Object.entries(next).every(([name, value]) => state[name] === value)) return;
  const before = { ...state };
  if (next.link && next.link !== state.link) state.since = new Date();
  Object.assign(state, next);
  for (const call of watchers) call(state, before);
}

/** Follow what happens until `signal` is aborted: `filter` has `kind` and `device`, lists. `on[kind](data)` gets each
 * happening; `catchUp()` is called when some were missed. One at a time: the view that is shown. */
export function follow(filter, on, catchUp, signal) {
  current?.close();
  const follower = new Follower(filter, on, catchUp);
  current = follower;
  signal.addEventListener("abort", () => follower.close());
  if (!document.hidden) follower.open();
}

class Follower {
  constructor(filter, on, catchUp) {
    this.on = on;
    this.catchUp = catchUp;
    this.missed = false;
    this.closed = false;
    const query = new URLSearchParams();
    for (const kind of filter.kind ?? []) query.append("kind", kind);
    for (const device of filter.device ?? []) query.append("device", device);
    this.url = `/api/v1/stream?${query}`;
  }

  open() {
    if (this.closed || this.source) return;
    const source = (this.source = new EventSource(this.url));
    source.onopen = () => {
      change({ link: "live" });
      if (this.missed) this.catchUp();
      this.missed = false;
    };
    source.onerror = () => {
      if (this.source !== source) return;
      // The browser comes back by itself and says which event it saw last, unless it was refused.
      this.missed = true;
      if (source.readyState === EventSource.CLOSED) {
        this.pause();
        setTimeout(() => this.open(), AGAIN);
      }
      ask();
    };
    source.addEventListener("gap", () => this.catchUp());
    for (const [kind, call] of Object.entries(this.on)) {
      source.addEventListener(kind, (event) => call(JSON.parse(event.data)));
    }
  }

  pause() {
    this.source?.close();
    this.source = null;
  }

  close() {
    this.closed = true;
    this.pause();
    if (current === this) current = null;
  }
}

let asking = false;

async function ask() {
  if (asking) return;
  asking = true;
  const abort = new AbortController();
  const timer = setTimeout(() => abort.abort(), PATIENCE);
  try {
    const answer = await fetch("/readyz", { signal: abort.signal });
    const { checks } = await answer.json();
    const wrong = checks.database !== "ok" ? checks.database : checks.migrations !== "ok" ? checks.migrations : null;
    change({ fault: wrong });
    const open = current?.source?.readyState === EventSource.OPEN;
    if (open || !current) change({ link: "live" });
    else if (state.link === "lost") change({ link: "connecting" });
  } catch {
    if (current) current.missed = true;
    change({ link: "lost" });
    // A stream over a connection that hangs is not worth keeping.
    if (current?.source?.readyState === EventSource.OPEN) {
      current.pause();
      current.open();
    }
  } finally {
    clearTimeout(timer);
    asking = false;
  }
}

/** Begin to ask. */
export function start() {
  setInterval(() => document.hidden || ask(), EVERY);
  ask();
  // A page that nobody looks at takes no stream: browsers have six connections to a host, for all their tabs.
  document.addEventListener("visibilitychange", () => {
    if (!current) return;
    if (document.hidden) {
      current.pause();
      current.missed = true;
    } else {
      current.open();
      ask();
    }
  });
}
