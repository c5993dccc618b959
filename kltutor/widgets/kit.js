// What every widget shares: elements, scales, axes, handles, sliders, readings, tables.
// The package joins this file and a widget's own into one module (source() in base.py), so the names
// below are also taken in every widget. Nothing here computes anything that a page states.

const SVG = "http://www.w3.org/2000/svg";

// ---- elements ---------------------------------------------------------------------------------------

// Attributes: a function is a listener, `text` is the content, null and false remove.
export function set(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (name === "text") {
      if (node.textContent !== value) node.textContent = value;
    } else if (value === null || value === false) node.removeAttribute(name);
    else node.setAttribute(name, value === true ? "" : value);
  }
  return node;
}

export function h(tag, attributes = {}, ...children) {
  const node = set(document.createElement(tag), attributes);
  node.append(...children);
  return node;
}

export function s(tag, attributes = {}, ...children) {
  const node = set(document.createElementNS(SVG, tag), attributes);
  node.append(...children);
  return node;
}

// Our own markup (never a reader's words) as nodes: html("J = <var>β</var>").
export function html(markup) {
  const holder = document.createElement("template");
  holder.innerHTML = markup;
  return holder.content;
}

// ---- numbers ----------------------------------------------------------------------------------------

// JupyterLab takes the arrow keys for its cells unless an element says so.
const OWN_KEYS = { "data-lm-suppress-shortcuts": "true" };

export const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

// A number as the page prints it: fixed digits, or a power of ten where those would hide it.
export function format(value, digits = 3) {
  if (value === Infinity) return "∞";
  if (value === -Infinity) return "−∞";
  if (Number.isNaN(value)) return "undefined";
  const size = Math.abs(value);
  const plain = size === 0 || (size >= 10 ** -digits && size < 1e5);
  const [mantissa, power] = (plain ? value.toFixed(digits) : value.toExponential(2)).split("e");
  const sign = mantissa.replace("-", "−");
  if (!power) return sign;
  const raised = [...power.replace("+", "")].map((c) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[c] ?? "⁻").join("");
  return `${sign}·10${raised}`;
}

// A coefficient with three significant digits: 0.0123, 12.3, 1230.
export function short(value) {
  return Number(value.toPrecision(3)).toString().replace("-", "−");
}

// Write numbers into every <output data-number="kl" data-digits="3"> below root; `kl.2` is an entry of a list.
export function fill(root, numbers) {
  for (const node of root.querySelectorAll("[data-number]")) {
    const value = node.dataset.number.split(".").reduce((at, key) => at[key], numbers);
    const text = format(value, Number(node.dataset.digits ?? 3));
    if (node.textContent !== text) node.textContent = text;
  }
}

// ---- scales -----------------------------------------------------------------------------------------

function scale([a, b], [p, q], to, from, ticks) {
  const [start, span] = [to(a), to(b) - to(a)];
  const at = (value) => p + ((to(value) - start) / span) * (q - p);
  at.invert = (pixel) => from(start + ((pixel - p) / (q - p)) * span);
  at.ticks = ticks;
  at.domain = [a, b];
  at.range = [p, q];
  return at;
}

export function linear(domain, range) {
  const same = (value) => value;
  return scale(domain, range, same, same, (count = 5) => {
    const [a, b] = domain;
    const rough = Math.abs(b - a) / count;
    const unit = 10 ** Math.floor(Math.log10(rough));
    const step = unit * [1, 2, 5, 10].find((m) => m * unit >= rough * 0.999);
    const low = Math.ceil(Math.min(a, b) / step - 1e-9);
    const high = Math.floor(Math.max(a, b) / step + 1e-9);
    return Array.from({ length: high - low + 1 }, (_, i) => Number(((low + i) * step).toPrecision(12)));
  });
}

export function logarithmic(domain, range) {
  return scale(domain, range, Math.log10, (value) => 10 ** value, (count = 6) => {
    const [low, high] = [Math.ceil(Math.log10(domain[0]) - 1e-9), Math.floor(Math.log10(domain[1]) + 1e-9)];
    const step = Math.max(1, Math.ceil((high - low) / count));
    const powers = Array.from({ length: Math.floor((high - low) / step) + 1 }, (_, i) => low + i * step);
    return powers.map((power) => 10 ** power);
  });
}

// ---- charts -----------------------------------------------------------------------------------------

// An SVG of fixed inner size that scales with the page. `label` says to a screen reader what it shows;
// a chart with handles in it is a group, one without is an image.
export function chart({ width = 340, height = 260, label, interactive = false }) {
  return s("svg", {
    viewBox: `0 0 ${width} ${height}`,
    class: "kl-chart",
    role: interactive ? "group" : "img",
    "aria-label": label,
  });
}

// An axis along the bottom ("x") or the left ("y"), redrawn from a scale; `at` is where it stands.
export function axis(side, { at, title, grid = 0, count = 5, tick = short }) {
  const node = s("g", { class: "kl-axis", "aria-hidden": "true" });
  const x = side === "x";
  const update = (by) => {
    const [p, q] = by.range;
    const marks = by.ticks(count).flatMap((value) => {
      const pixel = by(value);
      const line = x
        ? { x1: pixel, x2: pixel, y1: at + 4, y2: at - grid }
        : { y1: pixel, y2: pixel, x1: at - 4, x2: at + grid };
      const text = x ? { x: pixel, y: at + 16, "text-anchor": "middle" } : { x: at - 7, y: pixel + 4, "text-anchor": "end" };
      return [s("line", line), s("text", { ...text, text: tick(value) })];
    });
    const rule = x ? { x1: p, x2: q, y1: at, y2: at } : { y1: p, y2: q, x1: at, x2: at };
    const name = x
      ? { x: (p + q) / 2, y: at + 32, "text-anchor": "middle" }
      : { x: at - 7, y: Math.min(p, q) - 10, "text-anchor": "start", class: "kl-title" };
    node.replaceChildren(...marks, s("line", { ...rule, class: "kl-rule" }), s("text", { ...name, text: title }));
  };
  return { node, update };
}

// Path data through points; a gap wherever a coordinate is not finite.
export function path(points) {
  let pen = "M";
  let data = "";
  for (const [x, y] of points) {
    if (Number.isFinite(x) && Number.isFinite(y)) {
      data += `${pen}${x.toFixed(2)} ${y.toFixed(2)}`;
      pen = "L";
    } else pen = "M";
  }
  return data;
}

// The marker of a role (figures.py): circle, square or triangle, about the origin.
export function marker(role, size = 6) {
  const shape = { policy: "circle", k1: "circle", reference: "square", k2: "square" }[role] ?? "triangle";
  const class_ = `kl-marker kl-${role}`;
  if (shape === "circle") return s("circle", { r: size, class: class_ });
  if (shape === "square") return s("rect", { x: -size, y: -size, width: 2 * size, height: 2 * size, class: class_ });
  return s("path", { d: `M0 ${-1.2 * size}L${1.1 * size} ${0.8 * size}L${-1.1 * size} ${0.8 * size}Z`, class: class_ });
}

export const place = (node, x, y) => set(node, { transform: `translate(${x.toFixed(2)} ${y.toFixed(2)})` });

// Where a pointer is, in the coordinates of the SVG around `node`.
function pointer(event, node) {
  const point = new DOMPoint(event.clientX, event.clientY);
  return point.matrixTransform(node.ownerSVGElement.getScreenCTM().inverse());
}

// Call `move({x, y})` while `node`, a part of a chart, is dragged with a mouse, a pen or a finger.
export function draggable(node, move) {
  let grip = null; // from the pointer to the middle of what is dragged, so that nothing jumps
  set(node, {
    class: `${node.getAttribute("class") ?? ""} kl-draggable`,
    pointerdown(event) {
      if (event.button !== 0) return;
      const from = pointer(event, node);
      const middle = node.transform.baseVal.consolidate()?.matrix ?? { e: from.x, f: from.y };
      grip = { x: middle.e - from.x, y: middle.f - from.y };
      node.setPointerCapture(event.pointerId);
      node.focus?.({ preventScroll: true });
      event.preventDefault();
    },
    pointermove(event) {
      if (!grip) return;
      const { x, y } = pointer(event, node);
      move({ x: x + grip.x, y: y + grip.y });
    },
    lostpointercapture() {
      grip = null;
    },
  });
  return node;
}

// What arrow, page, Home and End keys make of a value; undefined for any other key.
export function keyed(key, value, { min, max, step, page = 10 * step }) {
  const by = { ArrowUp: step, ArrowRight: step, ArrowDown: -step, ArrowLeft: -step, PageUp: page, PageDown: -page }[key];
  if (by !== undefined) return clamp(value + by, min, max);
  return { Home: min, End: max }[key];
}

// A point of a chart that is dragged or moved by keys. `at({x, y})` turns a place in the chart into a value,
// `change(value)` receives it in [min, max], on a multiple of step. Call update(x, y, value, spoken) to redraw.
export function handle({ label, min, max, step, page, vertical = true, shape, at, change }) {
  const limits = { min, max, step, page };
  let now = min;
  const settle = (value) => change(Number(clamp(Math.round(value / step) * step, min, max).toPrecision(12)));
  const node = s(
    "g",
    {
      ...OWN_KEYS,
      class: "kl-handle",
      role: "slider",
      tabindex: 0,
      "aria-label": label,
      "aria-valuemin": min,
      "aria-valuemax": max,
      "aria-orientation": vertical ? "vertical" : "horizontal",
      keydown(event) {
        const next = keyed(event.key, now, limits);
        if (next === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
        event.preventDefault();
        settle(next);
      },
    },
    s("circle", { r: 20, class: "kl-reach" }),
    s("circle", { r: 12, class: "kl-ring" }),
    shape,
  );
  draggable(node, (point) => settle(at(point)));
  const update = (x, y, value, spoken) => {
    now = value;
    place(node, x, y);
    set(node, { "aria-valuenow": value, "aria-valuetext": spoken });
  };
  return { node, update };
}

// ---- controls ---------------------------------------------------------------------------------------

let count = 0;
export const unique = (stem) => `kl-${stem}-${++count}`;

// A native range with its label and its value. With `log`, min, max and the value are positive numbers on a
// logarithmic track, and step counts decades.
export function slider({ label, min, max, step, log = false, spoken = short, change }) {
  const [to, from] = log ? [Math.log10, (v) => Number((10 ** v).toPrecision(6))] : [(v) => v, (v) => v];
  const id = unique("slider");
  const output = h("output", { for: id });
  const input = h("input", {
    ...OWN_KEYS,
    id,
    type: "range",
    min: to(min),
    max: to(max),
    step,
    input: () => change(clamp(from(Number(input.value)), min, max)),
  });
  const node = h("div", { class: "kl-slider" }, h("label", { for: id }, label), output, input);
  const update = (value) => {
    const track = to(value);
    if (Math.abs(Number(input.value) - track) > step / 2) input.value = track;
    set(output, { text: spoken(value) });
    set(input, { "aria-valuetext": spoken(value) });
  };
  return { node, input, update };
}

export function checkbox({ label, change }) {
  const input = h("input", { type: "checkbox", change: () => change(input.checked) });
  const node = h("label", { class: "kl-check" }, input, label);
  return { node, input, update: (value) => (input.checked = value) };
}

export function button(label, click) {
  return h("button", { type: "button", class: "kl-button", click }, label);
}

// Three things to try. Each has a title, what to watch (our own markup), and the state that sets it up.
export function experiments(model, list) {
  const items = list.map(({ title, text, state }) => {
    const what = h("p", {}, h("strong", {}, title), " ", html(text), " ");
    what.append(button("Set it up", () => change(model, state)));
    set(what.lastChild, { "aria-label": `Set it up: ${title}` });
    return h("li", {}, what);
  });
  return h("section", { class: "kl-try" }, h("p", { class: "kl-heading" }, "Try this"), h("ol", {}, ...items));
}

// The numbers behind the picture, for whoever cannot see it: update([[row header, number, …], …]).
export function table(summary, columns) {
  const head = h("tr", {}, ...columns.map((name) => h("th", { scope: "col" }, name)));
  const body = h("tbody");
  const grid = h("table", {}, h("caption", {}, summary), h("thead", {}, head), body);
  let rows = [];
  const draw = () => {
    if (!node.open) return; // a folded table is read by nobody
    const lines = rows.map(([name, ...cells]) =>
      h("tr", {}, h("th", { scope: "row" }, name), ...cells.map((v) => h("td", {}, typeof v === "number" ? format(v, 4) : v))),
    );
    body.replaceChildren(...lines);
  };
  const scroll = h("div", { class: "kl-scroll", tabindex: 0, role: "region", "aria-label": summary }, grid);
  const node = h("details", { class: "kl-table", toggle: draw }, h("summary", {}, "The numbers as a table"), scroll);
  const update = (next) => {
    rows = next;
    draw();
  };
  return { node, update };
}

// ---- model ------------------------------------------------------------------------------------------

const held = new WeakSet();

// Set several traits and redraw once; a notebook's Python side hears of it.
export function change(model, values) {
  held.add(model);
  const names = Object.keys(values).filter((name) => JSON.stringify(model.get(name)) !== JSON.stringify(values[name]));
  names.forEach((name, i) => {
    if (i === names.length - 1) held.delete(model);
    model.set(name, values[name]);
  });
  held.delete(model);
  model.save_changes();
}

// Draw now and after every change of one of the named traits, whoever made it; return the way to stop.
export function follow(model, names, draw) {
  const redraw = () => held.has(model) || draw(Object.fromEntries(names.map((name) => [name, model.get(name)])));
  for (const name of names) model.on(`change:${name}`, redraw);
  redraw();
  return () => names.forEach((name) => model.off(`change:${name}`, redraw));
}
