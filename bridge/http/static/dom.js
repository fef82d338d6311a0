// Elements, made so that nothing which came from a device can become anything but text.

const SVG = "http://www.w3.org/2000/svg";

/** An element. `props`: `on…` listeners, `class`, `style` as an object, else attributes; false and null are left out.
 * Children are nodes, or become text. */
export function h(tag, props, ...children) {
  return build(document.createElement(tag), props, children);
}

/** An element of a drawing. */
export function svg(tag, props, ...children) {
  return build(document.createElementNS(SVG, tag), props, children);
}

function build(element, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, text] of Object.entries(value)) element.style.setProperty(key, text);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  add(element, children);
  return element;
}

function add(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : String(child));
  }
}

/** A field in which one of `pairs`, [value, title], is chosen. A title may be left out. */
export function choice(props, pairs, chosen) {
  return h("select", props, pairs.map(([value, title = value]) => h("option", { value, selected: value === chosen }, title)));
}

/** A table: the titles of its columns, and rows of cells, the first of which says what its row is about. */
export function table(titles, rows) {
  const cell = (content, i) => h(i ? "td" : "th", { scope: !i && "row", "data-title": titles[i] }, content);
  return h(
    "table",
    { class: "list plain" },
    h("thead", {}, h("tr", {}, titles.map((title) => h("th", { scope: "col" }, title)))),
    h("tbody", {}, rows.map((cells) => h("tr", {}, cells.map(cell)))),
  );
}

/** `element` with other children than before. */
export function fill(element, ...children) {
  element.replaceChildren();
  add(element, children);
  return element;
}

/** What calls `work` once, when it has not been called itself for a moment: nobody types any more, no more comes in. */
export function settled(work) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(work, 250);
  };
}

/** Whether somebody is typing, choosing or reading in `element`: then it is not replaced under their hands. */
export function busy(element) {
  return element.contains(document.activeElement) && document.activeElement !== element;
}
