// Requests to the bridge. What goes wrong is told as it told it (RFC 9457).

const BASE = "/api/v1";
const PATIENCE = 20_000;

export class Problem extends Error {
  constructor(status, title, detail) {
    super(detail || title);
    this.status = status;
    this.title = title;
  }
}

let onStranger = () => {};

/** Have `call` called when the bridge no longer knows who we are. */
export function whenStranger(call) {
  onStranger = call;
}

/** One request: `{ data, etag }`. Throws a Problem, with status 0 when nobody answers. */
export async function request(method, path, { query, body, headers = {}, signal, patience = PATIENCE } = {}) {
  const url = new URL(BASE + path, location.origin);
  for (const [name, value] of Object.entries(query ?? {})) {
    for (const one of [value].flat()) if (one !== undefined && one !== null && one !== "") url.searchParams.append(name, one);
  }
  const abort = new AbortController();
  const timer = setTimeout(() => abort.abort(), patience);
  const leave = () => abort.abort();
  signal?.addEventListener("abort", leave);
  if (signal?.aborted) abort.abort();
  try {
    const answer = await fetch(url, {
      method,
      signal: abort.signal,
      headers: body === undefined ? headers : { "Content-Type": "application/json", ...headers },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
    const text = await answer.text();
    const data = text && /json/.test(answer.headers.get("Content-Type") ?? "") ? JSON.parse(text) : text;
    if (!answer.ok) {
      if (answer.status === 401 && path !== "/session") onStranger();
      throw new Problem(answer.status, data.title ?? answer.statusText, data.detail ?? "");
    }
    return { data, etag: answer.headers.get("ETag") };
  } catch (error) {
    if (error instanceof Problem) throw error;
    if (signal?.aborted) throw new DOMException("left", "AbortError");
    throw new Problem(0, "No answer", "The bridge does not answer.");
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", leave);
  }
}

export const get = async (path, query, signal) => (await request("GET", path, { query, signal })).data;
export const post = async (path, body, signal) => (await request("POST", path, { body, signal })).data;
export const remove = async (path, signal) => (await request("DELETE", path, { signal })).data;

/** A key under which a change that is sent twice is made once. */
export const newKey = () => [...crypto.getRandomValues(new Uint8Array(12))].map((b) => b.toString(16).padStart(2, "0")).join("");

/** A piece of a path. */
export const part = encodeURIComponent;
