"use strict";
// The viewer. Text reaches the page through textContent only; nothing is ever parsed as HTML.
(function () {
  const root = document.documentElement;
  const byId = (id) => document.getElementById(id);
  byId("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });

  const data = JSON.parse(byId("data").textContent);
  const items = data.items;
  if (!items.length) return;

  function el(tag, cls, text) {
    const e = document.createElement(tag);
    if (cls) e.className = cls;
    if (text !== undefined) e.textContent = text;
    return e;
  }
  const ICON = { right: "✓", wrong: "✗", truncated: "…", failed: "!", unscored: "·" };
  const spare = ["s0", "s1", "s2", "s3", "s4"];
  const tones = {};
  data.phases.forEach((p, i) => {
    const word = (...names) => names.some((n) => p.name.split(/[_\/]/).includes(n));
    tones[p.name] = word("hinted") ? "hinted" : word("baseline", "before") ? "baseline" : word("tuned", "after") ? "tuned" : spare[i % 5];
  });
  const rounds = (it) => (it.metrics && typeof it.metrics.round === "number" ? it.metrics.round : null);
  const hinted = (it) => (rounds(it) ? (rounds(it) === 1 ? " + hint" : " + " + rounds(it) + " hints") : "");
  const spaced = (s) => s.replace(/_/g, " ").replace(/\//g, " / ");
  const segText = (s) => (Array.isArray(s.x) ? s.x.join("") : s.x);

  // ---- filters and list
  const filter = { phase: "", outcome: "", kind: "", hints: "", text: "" };
  let shown = [];
  let current = -1;
  let surprise = false;

  function haystack(it) {
    if (!it.hay) {
      const parts = [it.task, it.kind, it.answer, it.reference || "", ...it.prompt.map((m) => m[1]), ...it.segments.slice(1).map(segText)];
      it.hay = parts.join("\n").toLowerCase();
    }
    return it.hay;
  }
  const passes = (it, skip) =>
    (skip === "phase" || !filter.phase || it.phase === filter.phase) &&
    (skip === "outcome" || !filter.outcome || it.outcome === filter.outcome) &&
    (!filter.kind || it.kind === filter.kind) &&
    (!filter.hints || String(rounds(it) || 0) === filter.hints) &&
    (!filter.text || haystack(it).includes(filter.text));

  function chips(box, name, values, label) {
    box.replaceChildren();
    const pool = items.filter((it) => passes(it, name));
    for (const value of ["", ...values]) {
      const n = value ? pool.filter((it) => it[name] === value).length : pool.length;
      const b = el("button", "chip", value ? label(value) : "all");
      b.type = "button";
      b.append(el("small", "", String(n)));
      b.setAttribute("aria-pressed", String(filter[name] === value));
      b.addEventListener("click", () => { filter[name] = value; refresh(); });
      box.append(b);
    }
  }

  function row(it, i) {
    const li = el("li");
    const ico = el("span", "ico o-" + it.outcome, ICON[it.outcome]);
    ico.title = it.outcome;
    li.append(ico, el("span", "", spaced(it.kind) || it.task));
    li.append(el("span", "ph c-" + (rounds(it) ? "hinted" : tones[it.phase]), spaced(it.phase) + hinted(it)));
    const ask = it.prompt.length ? it.prompt[it.prompt.length - 1][1] : it.task;
    li.append(el("span", "sub", ask.replace(/\s+/g, " ").slice(0, 120)));
    li.addEventListener("click", () => select(i));
    return li;
  }

  function refresh() {
    shown = items.map((_, i) => i).filter((i) => passes(items[i]));
    chips(byId("f-phase"), "phase", data.phases.filter((p) => p.shown).map((p) => p.name), spaced);
    const present = Object.keys(ICON).filter((o) => items.some((it) => it.outcome === o));
    chips(byId("f-outcome"), "outcome", present, (o) => ICON[o] + " " + o);
    byId("list").replaceChildren(...shown.map((i) => { const li = row(items[i], i); items[i].row = li; return li; }));
    byId("count").textContent = shown.length === 1 ? "1 attempt" : shown.length + " attempts";
    if (shown.includes(current)) mark(); else if (shown.length) select(shown[0], true);
  }
  function mark() {
    for (const i of shown) items[i].row.setAttribute("aria-current", String(i === current));
    const li = items[current].row, list = byId("list");
    if (li.offsetTop < list.scrollTop + list.offsetTop) list.scrollTop = li.offsetTop - list.offsetTop;
    const under = li.offsetTop + li.offsetHeight - list.offsetTop - list.clientHeight;
    if (list.scrollTop < under) list.scrollTop = under;
  }
  function select(i, quiet) {
    current = i;
    if (!shown.includes(i)) { filter.phase = filter.outcome = filter.kind = filter.hints = filter.text = ""; byId("f-kind").value = byId("f-hints").value = ""; byId("f-text").value = ""; refresh(); return; }
    mark();
    draw(items[i]);
    if (!quiet) history.replaceState(null, "", "#t" + i);
  }
  function step(by) {
    const at = shown.indexOf(current) + by;
    if (at >= 0 && at < shown.length) select(shown[at]);
  }

  // ---- text to blocks
  const FENCE = /```+[ \t]*([\w+-]*)[ \t]*(?:\n|$)|<(\/?)tool_call>/g;
  function blocks(text) {
    const out = [];
    let at = 0, open = null, m;
    const prose = (a, b) => { if (b > a) out.push({ type: "prose", a, b }); };
    const close = (tail, end) => { open.b = tail; open.end = end; out.push(open); open = null; at = end; };
    FENCE.lastIndex = 0;
    while ((m = FENCE.exec(text))) {
      const s = m.index, e = s + m[0].length, tag = m[2] !== undefined, lineStart = s === 0 || text[s - 1] === "\n";
      if (open) {
        if (open.tag !== tag || (!tag && !lineStart)) continue;
        if (tag ? m[2] : !m[1]) close(s, e);
        else if (!tag) { close(s, s); prose(at, s); open = { type: kind(m[1]), lang: m[1], start: s, a: e, tag }; }
      } else if (tag ? !m[2] : true) {
        prose(at, s);
        open = { type: tag ? "code" : kind(m[1]), lang: tag ? "tool call" : m[1], start: s, a: e, tag };
      }
      if (e === s) FENCE.lastIndex++;
    }
    if (open) close(text.length, text.length);
    prose(at, text.length);
    return out;
  }
  const kind = (lang) => (/^(output|stdout|result)$/i.test(lang) ? "output" : "code");

  const KW = "and as assert async await break class continue def del elif else except finally for from global if import in is lambda nonlocal not or pass raise return try while with yield None True False match case".split(" ");
  const LEX = {
    code: [/#[^\n]*/, "com", /[rbfu]{0,2}(?:"""[\s\S]*?(?:"""|$)|'''[\s\S]*?(?:'''|$)|"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?)/i, "str", /\b(?:0[xob][\da-f]+|\d[\d_]*(?:\.\d+)?(?:e[+-]?\d+)?)\b/i, "num", new RegExp("\\b(?:" + KW.join("|") + ")\\b"), "kw", /\b[A-Za-z_]\w*(?=\()/, "fn"],
    output: [/^(?:Traceback .*|\w*(?:Error|Exception|Interrupt|Exit)\b.*)$/m, "bad", /<\|[^|>\n]{1,40}\|>/, "special"],
    prose: [/^\n+|\n+$/, "ws", /<\|[^|>\n]{1,40}\|>|<\/?s>|<\/?(?:think|tool_call|tool_response)>/, "special", /\\boxed\{[^{}\n]*\}/, "boxed", /`[^`\n]+`/, "inline"],
  };
  function lex(text, type) {
    const rules = LEX[type], source = [], names = [];
    for (let i = 0; i < rules.length; i += 2) { source.push("(" + rules[i].source + ")"); names.push(rules[i + 1]); }
    const re = new RegExp(source.join("|"), type === "output" ? "gm" : "gi"), out = [];
    let m;
    while ((m = re.exec(text))) {
      if (!m[0]) { re.lastIndex++; continue; }
      out.push([m.index, m.index + m[0].length, names[m.slice(1).findIndex((g) => g !== undefined)]]);
    }
    return out;
  }

  // ---- one attempt
  function stream(it) {
    const runs = [], forks = [];
    let text = "";
    const branches = it.branches || [];
    branches.filter((b) => b.at < 0).forEach((b) => forks.push({ pos: 0, b }));
    it.segments.forEach((seg, k) => {
      if (k > 0 || seg.s === "policy") {
        (Array.isArray(seg.x) ? seg.x : [seg.x]).forEach((x, t) => {
          if (seg.gap && t === seg.gap[0]) forks.push({ pos: text.length, gap: seg.gap[1] });
          if (x) runs.push({ a: text.length, b: (text += x).length, seg, t });
        });
      }
      branches.filter((b) => b.at === k).forEach((b) => forks.push({ pos: text.length, b }));
    });
    return { text, runs, forks };
  }

  let tokens = [];
  function emit(parent, s, from, to, marks) {
    let r = s.runs.findIndex((run) => run.b > from), f = s.forks.findIndex((k) => !k.done && k.pos >= from);
    const fork = (pos) => { for (const k of s.forks) if (!k.done && k.pos <= pos && k.pos >= from) { k.done = true; branch(parent, k); } };
    for (; r >= 0 && r < s.runs.length && s.runs[r].a < to; r++) {
      const run = s.runs[r], a = Math.max(from, run.a), b = Math.min(to, run.b);
      if (f >= 0) fork(a);
      const span = el("span", "t " + run.seg.s);
      span.dataset.k = tokens.push(run) - 1;
      const lp = run.seg.l && run.seg.l[run.t];
      if (typeof lp === "number") span.style.setProperty("--p", Math.min(1, -lp / 4).toFixed(2));
      let at = a;
      for (const [x, y, cls] of marks) {
        if (y <= at || x >= b) continue;
        const p = Math.max(x, at), q = Math.min(y, b);
        if (p > at) span.append(s.text.slice(at, p));
        const part = s.text.slice(p, q);
        span.append(el("span", cls, cls === "ws" ? part.replace(/\n/g, "↵") : part));
        at = q;
      }
      if (at < b) span.append(s.text.slice(at, b));
      parent.append(span);
    }
    if (f >= 0) fork(to);
  }
  function branch(parent, k) {
    if (k.gap) { parent.append(el("span", "gap", " [… " + k.gap + " tokens left out …] ")); return; }
    const b = k.b;
    if (b.why === "others" && !b.ends) {
      const who = b.attempts.length > 4 ? b.attempts.length + " other attempts go" : "attempt " + b.attempts.join(", ") + (b.attempts.length > 1 ? " go" : " goes");
      parent.append(el("span", "gap", " ↳ " + who + " another way from here "));
      return;
    }
    const short = b.x.length <= 24 && !b.x.includes("\n");
    const why = b.why === "others" ? "attempt " + b.attempts.join(", ") + " ended here" : b.why === "rewritten" ? "history rewritten by the template" : "taken back";
    const button = el("button", "fork", "↳ " + (short ? b.x + " " + why : why + " (" + b.count + " tokens)"));
    button.type = "button";
    button.setAttribute("aria-expanded", "false");
    button.addEventListener("click", () => button.setAttribute("aria-expanded", String(button.getAttribute("aria-expanded") !== "true")));
    parent.append(button, el("span", "ghost", b.x));
  }

  function block(s, b) {
    const shift = (ms, by) => ms.map(([x, y, c]) => [x + by, y + by, c]);
    const lexed = shift(lex(s.text.slice(b.a, b.b), b.type), b.a);
    if (b.type === "prose") { const div = el("div", "prose"); emit(div, s, b.a, b.b, lexed); return div; }
    const env = s.runs.find((r) => r.seg.s === "environment" && r.b > b.a && r.a < Math.max(b.b, b.a + 1));
    const fake = b.type === "output" && !env;
    const box = el("div", "blk " + b.type + (fake ? " fake" : "")), head = el("div", "bhead"), fence = el("span", "fence");
    emit(fence, s, b.start, b.a, []);
    head.append(fence);
    let what = b.type === "output" ? (fake ? "written by the policy, nothing was run" : "from the environment") : "";
    const status = env && env.seg.f && env.seg.f.status;
    const tag = el("span", "what", what);
    if (status) { tag.append(" · "); tag.append(el("span", status === "ok" ? "st-ok" : "st-bad", String(status))); }
    if (what || status) head.append(tag);
    const pre = el("pre");
    emit(pre, s, b.a, b.b, lexed);
    box.append(head, pre);
    if (b.end > b.b) { const foot = el("div", "bfoot"); emit(foot, s, b.b, b.end, []); box.append(foot); }
    return box;
  }

  function facts(it) {
    const dl = el("dl", "facts");
    const add = (name, value, mono) => {
      if (value === undefined || value === null || value === "") return;
      const d = el("div");
      d.append(el("dt", "", name), el("dd", mono ? "mono" : "", String(value)));
      dl.append(d);
    };
    add("answer", it.answer || "none", true);
    add("reference", it.reference, true);
    add("reward", it.reward === null ? "not scored" : it.reward);
    add("stopped by", spaced(it.stop));
    add("tokens sampled", it.sampled);
    const lps = it.segments.flatMap((s) => s.l || []).filter((x) => typeof x === "number");
    if (lps.length) add("mean log-prob.", (lps.reduce((a, b) => a + b, 0) / lps.length).toFixed(3).replace("-", "−"));
    if (it.attempt) add("attempt", it.attempt[0] + " of " + it.attempt[1]);
    for (const [k, v] of Object.entries(it.metrics || {}).slice(0, 8)) add(spaced(k), v);
    for (const [node, value, source] of it.rewards || []) add("reward at node " + node, value + " (" + source + ")");
    return dl;
  }

  function same(it) {
    const twins = items.map((x, i) => [x, i]).filter(([x]) => x.task === it.task && x !== it);
    if (!twins.length) return null;
    const div = el("div", "same", "same problem in");
    for (const [x, i] of twins.slice(0, 12)) {
      const b = el("button", "chip");
      b.type = "button";
      b.append(el("span", "o-" + x.outcome, ICON[x.outcome]), " " + spaced(x.phase) + (x.attempt && rounds(x) === null ? " " + x.attempt[0] : hinted(x)));
      b.addEventListener("click", () => select(i));
      div.append(b);
    }
    return div;
  }

  function sketch(it) {
    const ns = "http://www.w3.org/2000/svg", nodes = it.tree, on = new Set(it.path), kids = nodes.map(() => []), y = [], x = [];
    nodes.forEach((n, i) => { if (n[0] !== null) kids[n[0]].push(i); });
    let leaves = 0;
    const place = (i, at) => {
      x[i] = [at + 4, at + 4 + 6 + Math.sqrt(nodes[i][2]) * 5];
      kids[i].sort((p, q) => on.has(q) - on.has(p) || p - q);
      y[i] = kids[i].length ? null : leaves++ * 9 + 5;
      kids[i].forEach((k) => place(k, x[i][1]));
      if (y[i] === null) y[i] = y[kids[i][0]];
    };
    nodes.forEach((n, i) => { if (n[0] === null) place(i, 0); });
    const width = Math.max(...x.map((p) => p[1])) + 4, svg = document.createElementNS(ns, "svg");
    svg.setAttribute("viewBox", "0 0 " + width + " " + (leaves * 9 + 2));
    svg.setAttribute("class", "sketch");
    svg.style.cssText = "width:100%;max-width:" + Math.round(width) + "px;max-height:220px";
    const path = (d, cls) => { const p = document.createElementNS(ns, "path"); p.setAttribute("d", d); p.setAttribute("class", cls); svg.append(p); };
    nodes.forEach((n, i) => {
      if (n[0] !== null && y[i] !== y[n[0]]) path("M" + x[n[0]][1] + " " + y[n[0]] + "V" + y[i] + "H" + x[i][0], "join");
      path("M" + x[i][0] + " " + y[i] + "H" + x[i][1], n[1] + (on.has(i) ? "" : " off"));
    });
    return svg;
  }

  function message(role, body) {
    const div = el("div", "msg");
    div.append(el("div", "role", role), el("div", "body", body));
    return div;
  }
  function key(name, variable) { const k = el("span", "key", name); k.style.setProperty("--k", "var(" + variable + ")"); return k; }

  function draw(it) {
    tokens = [];
    const box = byId("detail"), head = el("div", "dhead");
    head.append(el("span", "ico o-" + it.outcome, ICON[it.outcome] + " " + it.outcome), el("h3", "", spaced(it.kind) || "Attempt"), el("span", "id", spaced(it.phase) + hinted(it) + " · " + it.task));
    const parts = [head, same(it), facts(it)];
    if (it.error) parts.push(el("div", "failure", "Failed in our hands, not scored: " + it.error));
    if (it.search !== undefined) parts.push(searched(data.searches[it.search], el));
    else if (it.tree) parts.push(sketch(it));
    it.prompt.forEach(([role, text]) => parts.push(message(role, text)));
    const first = it.segments[0];
    if (first && first.s !== "policy") {
      const raw = el("details", "raw");
      raw.append(el("summary", "", "as the model saw it, " + first.c + " tokens"), el("pre", "", segText(first)));
      parts.push(raw);
    }
    const legend = el("div", "bar"), body = el("div", "stream" + (surprise ? " surprise" : ""));
    const used = new Set(it.segments.slice(1).map((s) => s.s));
    if (used.has("policy")) legend.append(surprise ? key("policy, the redder the less likely", "--wrong") : key("policy", "--t-policy"));
    if (used.has("hint")) legend.append(key("hint", "--t-hint"));
    if (used.has("environment")) legend.append(key("environment", "--t-environment"));
    const toggle = el("button", "chip", surprise ? "colour by source" : "colour by surprise");
    toggle.type = "button";
    toggle.addEventListener("click", recolour);
    legend.append(toggle);
    const s = stream(it);
    for (const b of blocks(s.text)) body.append(block(s, b));
    for (const k of s.forks) if (!k.done) branch(body, k);
    parts.push(legend, body);
    box.replaceChildren(...parts.filter(Boolean));
    box.scrollTop = 0;
  }
  function recolour() { surprise = !surprise; draw(items[current]); }

  // ---- hovering a token
  const tip = byId("tip");
  byId("detail").addEventListener("mousemove", (event) => {
    const span = event.target.closest && event.target.closest(".t");
    if (!span || span.dataset.k === undefined) { tip.hidden = true; return; }
    const { seg, t } = tokens[span.dataset.k], lp = seg.l && seg.l[t];
    let text = seg.s + " · node " + seg.n;
    if (seg.i) text = "id " + seg.i[t] + (typeof lp === "number" ? "\nlog-prob. " + String(lp).replace("-", "−") + "  (p = " + Math.exp(lp).toPrecision(3) + ")" : "") + "\n" + text + (seg.v !== undefined ? " · policy version " + seg.v : "");
    else text += "\n" + seg.c + (seg.c === 1 ? " token" : " tokens") + ", never a policy gradient".slice(0, seg.s === "policy" ? 0 : undefined);
    for (const [k, v] of Object.entries(seg.f || {}).slice(0, 6)) text += "\n" + spaced(k) + ": " + String(v).slice(0, 80);
    if (tip.textContent !== text) tip.textContent = text;
    tip.hidden = false;
    tip.style.left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8) + "px";
    tip.style.top = (event.clientY + 20 + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 10 : event.clientY + 20) + "px";
  });
  byId("detail").addEventListener("mouseleave", () => { tip.hidden = true; });

  // ---- start
  function picker(id, name, values) {
    const box = byId(id);
    box.append(...["", ...values].map((v) => { const o = el("option", "", v ? spaced(v) : "all"); o.value = v; return o; }));
    box.parentElement.hidden = values.length < 2;
    box.addEventListener("change", () => { filter[name] = box.value; refresh(); });
  }
  picker("f-kind", "kind", [...new Set(items.map((it) => it.kind))].filter(Boolean).sort());
  picker("f-hints", "hints", [...new Set(items.map((it) => String(rounds(it) || 0)))].sort());
  byId("f-text").addEventListener("input", (e) => { filter.text = e.target.value.toLowerCase().trim(); refresh(); });
  document.addEventListener("keydown", (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey) return;
    if (/^(INPUT|SELECT|TEXTAREA)$/.test(e.target.tagName)) { if (e.key === "Escape") e.target.blur(); return; }
    if (e.key === "j") step(1);
    else if (e.key === "k") step(-1);
    else if (e.key === "c") recolour();
    else if (e.key === "/") { e.preventDefault(); byId("f-text").focus(); }
    else return;
    byId("trajectories").scrollIntoView({ block: "nearest" });
  });
  const wanted = /^#t(\d+)$/.exec(location.hash);
  if (wanted && items[wanted[1]]) current = Number(wanted[1]);
  else current = Math.max(0, items.findIndex((it) => tones[it.phase] === "tuned" && !rounds(it)));
  refresh();
  draw(items[current]);
  if (wanted) byId("trajectories").scrollIntoView({ behavior: "instant" });
})();
