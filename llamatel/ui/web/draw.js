// Updates the page. Unchanged nodes are kept, so that focus, selection and screen readers are not disturbed. Text is
// only set as text: names are untrusted.
import { ago, clock, number } from "./format.js";

const SVG = "http://www.w3.org/2000/svg";
const GAP_S = 75;  // scrapes are at most a minute apart; longer distances are gaps

export function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined && text !== null) made.textContent = text;
  if (className) made.className = className;
  return made;
}

export function drawn(name, attributes, children = []) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// Replaces the content with these nodes and texts. A link keeps its node, which may have the focus.
export function put(parent, ...wanted) {
  wanted.forEach((one, index) => {
    const node = one instanceof Node ? one : document.createTextNode(one);
    const old = parent.childNodes[index];
    if (!old) parent.append(node);
    else if (old.isEqualNode(node)) return;
    else if (old.nodeName === "A" && node.nodeName === "A") {
      for (const { name } of [...old.attributes]) if (!node.hasAttribute(name)) old.removeAttribute(name);
      for (const { name, value } of node.attributes) old.setAttribute(name, value);
      put(old, ...node.childNodes);
    } else old.replaceWith(node);
  });
  while (parent.childNodes.length > wanted.length) parent.lastChild.remove();
}

export function bar(parts, whole, label) {
  const made = element("div", null, "bar");
  fill(made, parts, whole, label);
  return made;
}

export function fill(made, parts, whole, label) {
  made.setAttribute("role", "img");
  made.setAttribute("aria-label", label);
  put(made, ...parts.filter(([, value]) => value > 0).map(([name, value]) => {
    const part = element("i", null, name);
    part.style.width = `${Math.min(100, 100 * value / whole).toFixed(2)}%`;
    return part;
  }));
}

// Rows of a table: a unique key, then the cells: text, [text, class] or a node. The first cell
// is the row's heading. Columns of numbers have a heading of class n.
export function rows(body, entries) {
  const heads = [...body.parentElement.tHead.rows[0].cells].filter((head) => !head.hidden);
  const before = new Map([...body.rows].map((row) => [row.dataset.key, row]));
  const made = entries.map(([key, ...cells]) => {
    const row = before.get(key) ?? element("tr");
    row.dataset.key = key;
    cells.forEach((cell, index) => {
      const place = row.cells[index] ?? row.appendChild(element(index ? "td" : "th"));
      if (!index) place.scope = "row";
      const [content, className] = Array.isArray(cell) ? cell : [cell, ""];
      const wanted = [heads[index].className, className].filter(Boolean).join(" ");
      if (place.className !== wanted) place.className = wanted;
      put(place, content);
    });
    while (row.cells.length > cells.length) row.lastChild.remove();
    return row;
  });
  if (made.length === body.rows.length && made.every((row, index) => row === body.rows[index])) return;
  const focused = document.activeElement;
  body.replaceChildren(...made);
  if (body.contains(focused)) focused.focus({ preventScroll: true });
}

export function facts(list, entries) {
  put(list, ...entries.filter(([, value]) => value !== null && value !== undefined && value !== "")
    .flatMap(([name, value]) => {
      const shown = element("dd");
      shown.append(value);
      return [element("dt", name), shown];
    }));
}

// Values over time as stacked areas, or as one line; an unknown value is a gap. The heading shows the
// value under the pointer. Series: class, name, values. ``limit``: a line, and its name.
export function chart(place, { label, times, series, limit = null, limited = "", stacked = false, show = number, unit = "" }) {
  const known = series.flatMap((one) => one.values).filter((value) => value !== null);
  if (times.length < 2 || !known.length) {
    put(place, element("p", `${label}: nothing recorded yet`, "note"));
    return;
  }
  const begin = times[0], span = times[times.length - 1] - begin || 1;
  const sums = times.map((_, i) => series.every((one) => one.values[i] === null) ? null
    : series.reduce((sum, one) => sum + (one.values[i] ?? 0), 0));
  const highest = Math.max(...sums.filter((sum) => sum !== null));
  const top = Math.max(limit ?? 0, highest, 1e-9) * 1.05;
  const x = (i) => (100 * (times[i] - begin) / span).toFixed(2);
  const y = (value) => (100 - 100 * value / top).toFixed(2);
  const below = times.map(() => 0);
  const shapes = [];
  for (const one of series) {
    for (const run of runs(times, one.values)) {
      const upper = run.map((i) => `${x(i)},${y((stacked ? below[i] : 0) + one.values[i])}`);
      if (stacked) {
        const lower = run.map((i) => `${x(i)},${y(below[i])}`).reverse();
        shapes.push(drawn("polygon", { class: `area-${one.name}`, points: [...upper, ...lower].join(" ") }));
        run.forEach((i) => { below[i] += one.values[i]; });
      } else shapes.push(drawn("polyline", { class: "line", points: upper.join(" ") }));
    }
  }
  if (limit !== null) shapes.push(drawn("line", { class: "limit", x1: 0, x2: 100, y1: y(limit), y2: y(limit) }));
  const at = (i) => series.map((one) => `${show(one.values[i])}${one.called ? ` ${one.called}` : ""}`).join(", ") + unit;
  const last = times.length - 1;
  const most = limit === null ? `at most ${show(highest)}${unit}` : `${limited} ${show(limit)}${unit}`;
  if (!place.querySelector(".plot")) {
    const plot = element("div", null, "plot");
    plot.append(drawn("svg", {}), element("i", null, "cross"));
    plot.addEventListener("pointermove", (event) => { place.pointer = event.clientX; place.point(); });
    plot.addEventListener("pointerleave", () => { place.pointer = null; place.point(); });
    const heading = element("p", null, "head"), ends = element("p", null, "ends");
    heading.append(element("b"), element("span"), element("span"));
    ends.append(element("span"), element("span", "now"));
    place.replaceChildren(heading, plot, ends);
  }
  const [heading, plot, ends] = place.children;
  place.point = () => {
    const box = plot.getBoundingClientRect();
    const aimed = place.pointer == null ? null : begin + span * (place.pointer - box.left) / box.width;
    const i = aimed === null ? last : times.reduce((best, time, n) => Math.abs(time - aimed) < Math.abs(times[best] - aimed) ? n : best, 0);
    put(heading.children[0], label);
    put(heading.children[1], aimed === null ? at(i) : `${clock(times[i])}: ${at(i)}`);
    put(heading.children[2], most);
    plot.lastChild.hidden = aimed === null;
    plot.lastChild.style.left = `${x(i)}%`;
  };
  place.point();
  plot.firstChild.replaceWith(drawn("svg", { viewBox: "0 0 100 100", preserveAspectRatio: "none", role: "img", "aria-label": `${label}: now ${at(last)}, ${most}` }, shapes));
  put(ends.firstChild, ago(span));
}

// Runs of consecutive known values.
function runs(times, values) {
  const found = [];
  values.forEach((value, i) => {
    if (value === null) return;
    const last = found[found.length - 1];
    if (last && last[last.length - 1] === i - 1 && times[i] - times[i - 1] < GAP_S) last.push(i); else found.push([i]);
  });
  return found;
}
