"use strict";
// A searched tree: a circle is a state, as large as its visits and coloured by its value.
function searched(found, el) {
  const ns = "http://www.w3.org/2000/svg", states = found.states;
  const kids = states.map(() => []), depth = [], y = [];
  states.forEach((s, i) => { depth[i] = s.p === null ? 0 : depth[s.p] + 1; if (s.p !== null) kids[s.p].push(i); });
  let rows = 0;
  const place = (i) => {
    kids[i].sort((p, q) => (states[q].way || 0) - (states[p].way || 0) || states[q].n - states[p].n || p - q);
    kids[i].forEach(place);
    y[i] = kids[i].length ? y[kids[i][0]] : rows++ * 24 + 15;
  };
  place(0);
  const qs = states.slice(1).filter((s) => !s.off && s.q !== null).map((s) => s.q), low = Math.min(...qs), high = Math.max(...qs);
  const most = Math.max(1, ...states.map((s) => s.n)), step = 92, x = (i) => depth[i] * step + 12, size = (s) => 3 + 6 * Math.sqrt(s.n / most);
  const width = (Math.max(...depth) + 1) * step + 24, svg = document.createElementNS(ns, "svg");
  svg.setAttribute("viewBox", "0 0 " + width + " " + (rows * 24 + 6));
  svg.setAttribute("class", "searched");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", "the searched tree");
  svg.style.width = width + "px";
  const add = (name, attributes, parent, text) => {
    const e = document.createElementNS(ns, name);
    for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
    if (text !== undefined) e.textContent = text;
    (parent || svg).append(e);
    return e;
  };
  states.forEach((s, i) => {
    if (s.p !== null) add("path", { d: "M" + x(s.p) + " " + y[s.p] + "V" + y[i] + "H" + x(i), class: s.way ? "way" : s.off ? "edge off" : "edge" });
  });
  const shown = (v) => String(v).replace("-", "\u2212");
  states.forEach((s, i) => {
    const g = add("g", { class: (s.way ? "way " : "") + (s.off ? "off" : "") });
    const dot = add("circle", { cx: x(i), cy: y[i], r: size(s) }, g);
    if (!s.off && s.p !== null && s.q !== null) dot.style.setProperty("--q", high > low ? Math.round(100 * (s.q - low) / (high - low)) + "%" : "50%");
    const mark = s.o !== undefined ? (s.o >= 1 ? "\u2713" : "\u2717") : s.cut ? "\u2026" : s.end ? "\u25aa" : "";
    add("text", { x: x(i) + size(s) + 3, y: y[i] - 4 }, g, (s.off ? "" : s.n + " \u00b7 " + shown(s.q)) + (mark ? " " + mark : ""));
    let told = (s.x || "the prompt") + "\n" + (s.off ? "never visited" : "visits " + s.n + ", value " + shown(s.q));
    if (s.c !== undefined) told += ", judge " + shown(s.c);
    if (s.o !== undefined) told += ", outcome " + shown(s.o);
    if (s.e !== undefined) told += "\nthe environment: " + s.e;
    add("title", {}, g, told);
  });
  const box = el("div", "searchbox"), scroll = el("div", "scroll");
  let line = "search " + found.strategy + ": " + (states.length + found.left - 1) + " steps, " + found.deepest + " deep; " + found.sampled + " tokens sampled, " + found.unique + " of them different";
  if (found.calls) line += "; " + found.calls + " calls run, " + found.replayed + " replayed, " + found.forked + " states copied" + (found.lost ? ", " + found.lost + " steps lost" : "") + (found.refused ? ", " + found.refused + " states not saved" : "");
  if (found.left) line += "; " + found.left + " steps not drawn";
  scroll.append(svg);
  box.append(scroll, el("div", "caption", line + ". Beside a state: visits \u00b7 value; the chosen path is bold, hollow ones were never visited."));
  return box;
}
