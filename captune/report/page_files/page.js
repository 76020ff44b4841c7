"use strict";
// One page, no library, no network. Text from the run reaches the document through textContent only.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const BATCH = 12;

let language = data.language;
const say = (key) => data.words[language][key] ?? key;

// ---- Text that may be hostile -------------------------------------------------------------------------------

const CONTROL = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]/gu;

// Control characters and marks that turn the direction of writing are spelt out instead of obeyed.
function visible(text) {
  return text.replace(CONTROL, (mark) => {
    const code = mark.codePointAt(0);
    return code < 32 ? String.fromCodePoint(0x2400 + code) : `[U+${code.toString(16).toUpperCase().padStart(4, "0")}]`;
  });
}

function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

const isolated = (text) => element("bdi", { dir: "auto" }, visible(text));

// ---- Differences word by word --------------------------------------------------------------------------------

// Chinese is compared character by character, everything else word by word; spaces belong to the word before.
const TOKEN = /(?:\p{Script=Han}|[\p{L}\p{N}'’-]+|[^\s\p{L}\p{N}])\s*|\s+/gu;
const split = (text) => text.match(TOKEN) ?? [];
const bare = (token) => token.trim().toLowerCase();

function againstReferences(text, references) {
  const known = new Set(references.flatMap(split).map(bare));
  return split(text).map((token) => [/[\p{L}\p{N}]/u.test(token) && known.has(bare(token)) ? "hit" : "", token]);
}

// Longest common subsequence; captions on the page are at most 1,000 characters long.
function againstBefore(text, before) {
  const a = split(before);
  const b = split(text);
  const x = a.map(bare);
  const y = b.map(bare);
  const width = b.length + 1;
  const best = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      best[i * width + j] = x[i] === y[j]
        ? best[(i + 1) * width + j + 1] + 1
        : Math.max(best[(i + 1) * width + j], best[i * width + j + 1]);
    }
  }
  const parts = [];
  let i = 0;
  let j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && x[i] === y[j]) {
      parts.push(["", b[j++]]);
      i++;
    } else if (j >= b.length || (i < a.length && best[(i + 1) * width + j] >= best[i * width + j + 1])) {
      parts.push(["del", a[i++]]);
    } else {
      parts.push(["ins", b[j++]]);
    }
  }
  return parts;
}

function marked(parts) {
  const holder = element("bdi", { dir: "auto" });
  // Neighbours of one kind share an element, and a space at their end stays outside it.
  for (let start = 0; start < parts.length;) {
    let end = start;
    while (end < parts.length && parts[end][0] === parts[start][0]) end++;
    const text = parts.slice(start, end).map((part) => part[1]).join("");
    const kind = parts[start][0];
    if (kind === "") holder.append(visible(text));
    else {
      const node = kind === "hit" ? element("mark", { class: "hit" }) : element(kind);
      node.textContent = visible(text.trimEnd());
      holder.append(node, text.slice(text.trimEnd().length));
    }
    start = end;
  }
  return holder;
}

function captionNode(image, row) {
  const text = image.c[row];
  if (text === null) return element("span", { class: "empty" }, say("no_caption"));
  if (text.trim() === "") return element("span", { class: "empty" }, say("empty_caption"));
  const mode = byId("compare").value;
  if (mode === "references" && image.r.length) return marked(againstReferences(text, image.r));
  if (mode === "before" && row > 0 && image.c[row - 1] !== null) return marked(againstBefore(text, image.c[row - 1]));
  return isolated(text);
}

// ---- Order and choice ---------------------------------------------------------------------------------------

const score = (image, metric, row) => image.s[metric]?.[row] ?? NaN;
const direction = (metric) => (data.lower.includes(metric) ? -1 : 1);

function percentiles(values) {
  const order = values.map((_, index) => index).sort((a, b) => values[a] - values[b]);
  const ranks = new Float64Array(values.length);
  for (let start = 0; start < order.length;) {
    let end = start;
    while (end < order.length && values[order[end]] === values[order[start]]) end++;
    for (let k = start; k < end; k++) ranks[order[k]] = (start + end - 1) / 2 / Math.max(1, order.length - 1);
    start = end;
  }
  return ranks;
}

// By how much the metrics rank an image's change differently among all images, 0 to 1.
const spreads = new Map();
function disagreement(from, to) {
  const key = `${from} ${to}`;
  if (!spreads.has(key)) {
    const ranks = data.metrics.map((_, metric) => percentiles(data.images.map((image) => {
      const change = score(image, metric, to) - (from === to ? 0 : score(image, metric, from));
      return Number.isNaN(change) ? 0 : direction(metric) * change;
    })));
    spreads.set(key, data.images.map((_, index) => {
      const here = ranks.map((rank) => rank[index]);
      return here.length ? Math.max(...here) - Math.min(...here) : 0;
    }));
  }
  return spreads.get(key);
}

function sortKeys() {
  const metric = Number(byId("metric").value);
  const from = Number(byId("from").value);
  const to = Number(byId("to").value);
  // Larger is better.
  const value = (image, row) => direction(metric) * score(image, metric, row);
  const change = (image) => value(image, to) - value(image, from);
  switch (byId("sort").value) {
    case "improved": return data.images.map((image) => -change(image));
    case "regressed": return data.images.map(change);
    case "best": return data.images.map((image) => -value(image, to));
    case "worst": return data.images.map((image) => value(image, to));
    case "disagree": return disagreement(from, to).map((spread) => -spread);
    default: return data.images.map((_, index) => index);
  }
}

function searched(image) {
  const to = Number(byId("to").value);
  const from = Number(byId("from").value);
  switch (byId("scope").value) {
    case "to": return (image.c[to] ?? "").toLowerCase();
    case "from": return (image.c[from] ?? "").toLowerCase();
    case "references": return image.r.join("\n").toLowerCase();
    default: return (image.all ??= [image.i, ...image.c, ...image.r].join("\n").toLowerCase());
  }
}

let selected = [];
let shown = 0;

function choose() {
  const words = byId("search").value.toLowerCase().split(/\s+/u).filter(Boolean);
  const failure = byId("failure").value;
  const to = Number(byId("to").value);
  const keys = sortKeys();
  selected = [];
  data.images.forEach((image, index) => {
    if (failure !== "" && !(image.f?.[to] ?? []).includes(Number(failure))) return;
    if (words.length && !words.every((word) => searched(image).includes(word))) return;
    selected.push(index);
  });
  // Images without a score are last, equal ones in the order of the data.
  const rank = (index) => (Number.isNaN(keys[index]) ? Infinity : keys[index]);
  selected.sort((a, b) => (rank(a) === rank(b) ? a - b : rank(a) < rank(b) ? -1 : 1));
  draw();
}

// ---- Cards --------------------------------------------------------------------------------------------------

const number = (value) => (Number.isNaN(value) ? "–" : value.toFixed(3));

function changeNode(change, metric) {
  if (Number.isNaN(change)) return element("span", {}, "–");
  // What shows as 0.000 is no change.
  const visible = Math.abs(change) >= 0.0005 ? change : 0;
  const better = direction(metric) * visible;
  const kind = better > 0 ? "up" : better < 0 ? "down" : "";
  const arrow = visible > 0 ? "▲ +" : visible < 0 ? "▼ −" : "";
  return element("span", { class: kind }, `${arrow}${Math.abs(change).toFixed(3)}`);
}

function card(image, index) {
  const metric = Number(byId("metric").value);
  const from = Number(byId("from").value);
  const others = data.columns.filter((column) => column !== metric).slice(0, 2);
  const alternative = `${say("image")} ${visible(image.i)}${image.r.length ? `: ${visible(image.r[0])}` : ""}`;
  const picture = image.t
    ? element("img", { src: `data:image/jpeg;base64,${image.t}`, alt: alternative.slice(0, 300), loading: "lazy" })
    : element("div", { class: "absent" }, say("no_picture"));
  const references = element("details", {}, element("summary", {}, `${say("references")} (${image.r.length})`),
    element("ul", {}, ...image.r.map((text) => element("li", {}, isolated(text)))));
  references.open = true;

  const head = element("tr", {}, element("th", { scope: "col" }, say("checkpoint")),
    element("th", { scope: "col", class: "text" }, say("caption")),
    element("th", { scope: "col" }, visible(data.metrics[metric] ?? "")),
    element("th", { scope: "col" }, say("change")),
    ...others.map((other) => element("th", { scope: "col", class: "other" }, visible(data.metrics[other]))));
  const rows = data.checkpoints.map((name, row) => {
    const text = element("td", { class: "text" }, captionNode(image, row));
    for (const failure of image.f?.[row] ?? []) {
      text.append(element("span", { class: "badge" }, say(data.failures[failure])));
    }
    return element("tr", {}, element("th", { scope: "row" }, isolated(name)), text,
      element("td", {}, number(score(image, metric, row))),
      element("td", {}, row === from ? "" : changeNode(score(image, metric, row) - score(image, metric, from), metric)),
      ...others.map((other) => element("td", { class: "other" }, number(score(image, other, row)))));
  });
  return element("article", { class: "card", tabindex: "0", "aria-posinset": index + 1, "aria-setsize": selected.length },
    element("div", {}, element("h3", {}, isolated(image.i)), element("figure", {}, picture)),
    element("div", {}, references, element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows))));
}

// Observed again after every batch: an end that stays in sight is reported again, until it is out of sight.
const sight = new IntersectionObserver((entries) => {
  if (entries.some((entry) => entry.isIntersecting)) drawMore();
}, { rootMargin: "800px" });

function drawMore() {
  sight.unobserve(byId("more"));
  const end = Math.min(selected.length, shown + BATCH);
  const batch = document.createDocumentFragment();
  for (; shown < end; shown++) batch.append(card(data.images[selected[shown]], shown));
  byId("cards").append(batch);
  if (shown < selected.length) sight.observe(byId("more"));
}

function draw() {
  shown = 0;
  byId("cards").replaceChildren();
  const total = data.left_out ? ` ${say("left_out").replace("{n}", data.left_out)}` : "";
  byId("count").textContent = say("count").replace("{n}", selected.length).replace("{all}", data.images.length) + total;
  const legends = { references: "legend_references", before: "legend_before", none: "legend_none" };
  byId("legend").textContent = say(legends[byId("compare").value]);
  drawMore();
}

// ---- Language, theme, keys ----------------------------------------------------------------------------------

function translate() {
  document.documentElement.lang = language;
  for (const node of document.querySelectorAll("[data-t]")) node.textContent = say(node.dataset.t);
  for (const node of document.querySelectorAll("[data-t-label]")) node.setAttribute("aria-label", say(node.dataset.tLabel));
  byId("search").placeholder = say("search_hint");
  fill("failure", [["", say("any_or_none")], ...data.failures.map((name, index) => [String(index), say(name)])]);
}

function fill(id, options) {
  const before = byId(id).value;
  byId(id).replaceChildren(...options.map(([value, text]) => element("option", { value }, visible(text))));
  if (options.some(([value]) => value === before)) byId(id).value = before;
}

function step(by) {
  const cards = [...document.querySelectorAll(".card")];
  const here = cards.indexOf(document.activeElement?.closest?.(".card"));
  const next = cards[Math.max(0, here + by)];
  if (next === undefined) return;
  next.focus();
  next.scrollIntoView({ block: "nearest" });
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("input, select")) return;
  if (event.key === "j") step(1);
  else if (event.key === "k") step(-1);
  else if (event.key === "/") byId("search").focus();
  else return;
  event.preventDefault();
});

byId("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  root.dataset.theme = dark === "dark" ? "light" : "dark";
});

byId("language").value = language;
byId("language").addEventListener("change", (event) => {
  language = event.target.value;
  translate();
  draw();
});

fill("metric", data.metrics.map((name, index) => [String(index), name]));
byId("metric").value = String(data.columns[0] ?? 0);
const rows = data.checkpoints.map((name, index) => [String(index), name]);
fill("from", rows);
fill("to", rows);
byId("to").value = String(rows.length - 1);

byId("controls").addEventListener("submit", (event) => event.preventDefault());
byId("controls").addEventListener("change", choose);
byId("search").addEventListener("input", choose);
addEventListener("beforeprint", () => { while (shown < Math.min(selected.length, 200)) drawMore(); });

translate();
choose();
