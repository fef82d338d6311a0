// The numbers in what a device sends.

const LEVELS = 4;
const MOST = 60;

/** What says when a reading was made and which one it is: not what was measured. */
const ENVELOPE = new Set(["ts", "id"]);

/** What was measured. */
export function measured(values) {
  if (values === null || typeof values !== "object" || Array.isArray(values)) return values;
  return Object.fromEntries(Object.entries(values).filter(([key]) => !ENVELOPE.has(key)));
}

/** Every number or truth value: `{ field, number }`, `field` as the API names it: a key, or a JSON Pointer. */
export function numbersOf(values) {
  const found = [];
  walk(values, [], found);
  return found.filter(({ field }) => !ENVELOPE.has(field));
}

function walk(values, path, found) {
  if (values === null || typeof values !== "object" || Array.isArray(values) || path.length >= LEVELS) return;
  for (const [key, value] of Object.entries(values)) {
    if (found.length >= MOST) return;
    // The API refuses to look for these.
    if (!key || /["\\\p{Cc}]/u.test(key)) continue;
    const here = [...path, key];
    if (typeof value === "number" || typeof value === "boolean") found.push({ field: nameOf(here), number: Number(value) });
    else walk(value, here, found);
  }
}

function nameOf(path) {
  if (path.length === 1 && !path[0].startsWith("/")) return path[0];
  return path.map((key) => `/${key.replaceAll("~", "~0").replaceAll("/", "~1")}`).join("");
}

/** The number in `values` that `field` names; undefined if there is none. */
export function numberAt(values, field) {
  return numbersOf(values).find((one) => one.field === field)?.number;
}
