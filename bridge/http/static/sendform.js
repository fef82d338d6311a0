// The form of a command: from the commands that a profile knows, or free.

import { newKey } from "./api.js";
import { choice, fill, h } from "./dom.js";

let forms = 0;

/** A form whose button is called `action`. `commands`: name → JSON Schema of the arguments. `send(body)` gets what the
 * API takes; a Problem that it throws is shown. */
export function commandForm(commands, action, send) {
  const prefix = `command-${++forms}`;
  const names = Object.keys(commands);
  const which = choice({ id: `${prefix}-which` }, [...names.map((name) => [name]), ["", names.length ? "another one…" : "free"]]);
  const name = h("input", { id: `${prefix}-name`, required: true, maxlength: 128, spellcheck: "false", autocomplete: "off", placeholder: "reboot" });
  const ttl = h("input", { id: `${prefix}-ttl`, type: "number", min: 1, step: "any", placeholder: "60" });
  const fields = h("div", { class: "fields" });
  const trouble = h("p", { class: "trouble", role: "alert" });
  const button = h("button", { class: "primary" }, action);
  let args = null;
  let key = newKey();

  function choose() {
    const known = which.value !== "";
    nameField.hidden = known;
    name.disabled = known;
    args = new Arguments(known ? commands[which.value] : null, `${prefix}-arg`);
    fill(fields, args.elements);
    fill(trouble);
  }

  async function submit(event) {
    event.preventDefault();
    fill(trouble);
    let body;
    try {
      body = { name: which.value || name.value.trim(), args: args.read(), id: key };
    } catch (error) {
      return fill(trouble, error.message);
    }
    if (ttl.value) body.ttl = Number(ttl.value);
    button.disabled = true;
    try {
      await send(body);
      key = newKey(); // the next one is another command; after an error the same key makes it safe to try again
    } catch (problem) {
      if (problem.status === undefined && problem.name !== "AbortError") throw problem;
      fill(trouble, problem.status === 0 ? "The bridge does not answer. It is safe to send it again: it is sent once." : problem.message);
      if (problem.status === 409) key = newKey();
    } finally {
      button.disabled = false;
    }
    return undefined;
  }

  const nameField = labelled("Name", name);
  const form = h(
    "form",
    { class: "command", onsubmit: submit },
    names.length > 0 && labelled("Command", which),
    nameField,
    fields,
    labelled("Valid for, in seconds", ttl, "until then it is sent; later never"),
    trouble,
    button,
  );
  which.addEventListener("change", choose);
  choose();
  return form;
}

/** A field with its name above it. */
export function labelled(title, input, hint) {
  return h("div", { class: "field" }, h("label", { for: input.id }, title, hint && h("small", {}, ` ${hint}`)), input);
}

/** Fields for the arguments that a JSON Schema describes; one for JSON where it does not say. */
class Arguments {
  constructor(schema, prefix) {
    const properties = schema?.properties;
    this.free = !properties || typeof properties !== "object" || !Object.keys(properties).length;
    if (this.free) {
      // A schema that allows nothing needs no field.
      this.none = schema !== null && schema.type === "object" && schema.additionalProperties === false;
      this.input = h("textarea", { id: prefix, rows: 2, spellcheck: "false", placeholder: '{"delay": 5}' });
      this.elements = this.none ? [] : [labelled("Arguments", this.input, "as JSON, or nothing")];
      return;
    }
    const required = new Set(schema.required ?? []);
    this.fields = Object.entries(properties).map(([name, one], index) => new Field(name, one, required.has(name), `${prefix}-${index}`));
    this.elements = this.fields.map((field) => field.element);
  }

  /** The arguments. Throws an Error that says what is wrong. */
  read() {
    if (this.none) return {};
    if (this.free) {
      const text = this.input.value.trim();
      if (!text) return null;
      try {
        return JSON.parse(text);
      } catch (error) {
        this.input.focus();
        throw new Error(`The arguments are not JSON: ${error.message}`);
      }
    }
    const given = this.fields.map((field) => [field.name, field.read()]);
    return Object.fromEntries(given.filter(([, v]) => v !== undefined));
  }
}

/** One argument. The browser checks what it can; the rest is checked by the bridge and by the device. */
class Field {
  constructor(name, schema, required, id) {
    this.name = name;
    this.schema = schema;
    const type = [schema.type].flat().find((one) => one !== "null");
    const start = schema.default;
    if (Array.isArray(schema.enum) || type === "boolean") {
      this.kind = "choice";
      this.choices = schema.enum ?? [true, false];
      const title = (one) => (typeof one === "string" ? one : schema.enum ? JSON.stringify(one) : one ? "yes" : "no");
      const pairs = this.choices.map((one, i) => [i, title(one)]);
      this.input = choice({ id }, required ? pairs : [["", "–"], ...pairs], this.choices.indexOf(start));
    } else if (type === "integer" || type === "number") {
      this.kind = "number";
      const { minimum, maximum, multipleOf, exclusiveMinimum, exclusiveMaximum } = schema;
      const step = multipleOf ?? (type === "integer" ? 1 : "any");
      const whole = type === "integer" ? 1 : 0;
      this.input = h("input", { id, type: "number", min: minimum ?? (exclusiveMinimum === undefined ? undefined : exclusiveMinimum + whole), max: maximum ?? (exclusiveMaximum === undefined ? undefined : exclusiveMaximum - whole), step, required, value: start });
    } else if (type === "string") {
      this.kind = "text";
      this.input = h("input", { id, minlength: schema.minLength, maxlength: schema.maxLength, pattern: schema.pattern && anchored(schema.pattern), required, value: start, spellcheck: "false", autocomplete: "off" });
    } else {
      this.kind = "json";
      this.input = h("textarea", { id, rows: 2, required, spellcheck: "false", placeholder: type === "array" ? "[ ]" : "{ }" });
      if (start !== undefined) this.input.value = JSON.stringify(start);
    }
    this.element = labelled(schema.title ?? name, this.input, [schema.description, limits(schema), required ? null : "optional"].filter(Boolean).join(", "));
  }

  read() {
    const text = this.input.value;
    if (text === "") return undefined;
    if (this.kind === "choice") return this.choices[Number(text)];
    if (this.kind === "number") return Number(text);
    if (this.kind === "text") return text;
    try {
      return JSON.parse(text);
    } catch (error) {
      this.input.focus();
      throw new Error(`${this.name} is not JSON: ${error.message}`);
    }
  }
}

/** A schema's pattern may match anywhere, an input's must match all. One that the browser cannot read is left out. */
function anchored(pattern) {
  try {
    new RegExp(pattern, "v");
  } catch {
    return undefined;
  }
  return `[\\s\\S]*?(?:${pattern})[\\s\\S]*`;
}

function limits({ minimum, maximum }) {
  if (minimum !== undefined && maximum !== undefined) return `${minimum} to ${maximum}`;
  return minimum !== undefined ? `at least ${minimum}` : maximum !== undefined ? `at most ${maximum}` : null;
}
