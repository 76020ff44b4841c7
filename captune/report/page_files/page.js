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

// Positions count characters of Unicode, as Python does.
function hallucinated(text, mentions) {
  const characters = [...text];
  const part = (start, end) => characters.slice(start, end).join("");
  let last = 0;
  const parts = mentions.flatMap(([start, end]) => {
    const before = part(last, start);
    last = end;
    return [["", before], ["wrong", part(start, end)]];
  });
  return [...parts, ["", part(last)]];
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
      const node = ["hit", "wrong"].includes(kind) ? element("mark", { class: kind }) : element(kind);
      node.textContent = visible(text.trimEnd());
      holder.append(node, text.slice(text.trimEnd().length));
    }
    start = end;
  }
  return holder;
}

// ---- Paragraphs sentence by sentence -------------------------------------------------------------------------

// Start and text of each sentence, from the positions of their ends.
function sentencesOf(text, ends) {
  const characters = [...text];
  let last = 0;
  return ends.map((end) => {
    const part = characters.slice(last, end).join("");
    const start = end - [...part.trimStart()].length;
    last = end;
    return { start, end, text: part.trimStart() };
  });
}

const wordsOf = (text) => split(text).filter((token) => /[\p{L}\p{N}]/u.test(token)).map(bare);

// How many sentences of references have a word: rare words count more.
let frequencies = null;
function rarity(word) {
  if (frequencies === null) {
    frequencies = new Map([["", 0]]);
    for (const image of data.images) {
      image.r.forEach((text, index) => {
        for (const sentence of image.m ? sentencesOf(text, image.m[index]) : [{ text }]) {
          frequencies.set("", frequencies.get("") + 1);
          for (const known of new Set(wordsOf(sentence.text))) frequencies.set(known, (frequencies.get(known) ?? 0) + 1);
        }
      });
    }
  }
  return Math.log((frequencies.get("") + 2) / ((frequencies.get(word) ?? 0) + 1));
}

// Shared words over the words of both sentences, 0 to 1, each word weighted by its rarity.
function overlap(one, other) {
  const sum = (words) => [...words].reduce((total, word) => total + rarity(word), 0);
  const [a, b] = [new Set(one), new Set(other)];
  const total = sum(a) + sum(b);
  return total ? (2 * sum([...a].filter((word) => b.has(word)))) / total : 0;
}

function nearest(image, words) {
  let best = null;
  image.r.forEach((text, index) => {
    for (const sentence of sentencesOf(text, image.m[index])) {
      const share = overlap(words, wordsOf(sentence.text));
      if (best === null || share > best.share) best = { share, reference: index + 1, text: sentence.text };
    }
  });
  return best;
}

const LOW_OVERLAP = 0.2;

function sentenceList(image, row, mark) {
  const seen = new Map();
  return element("ol", { class: "sentences" }, ...sentencesOf(image.c[row], image.n[row]).map((sentence, index) => {
    const words = wordsOf(sentence.text);
    const key = words.join(" ");
    const line = [mark(sentence)];
    const before = seen.get(key);
    if (before !== undefined && words.length) {
      line.push(element("span", { class: "badge" }, say("repeats_sentence").replace("{n}", before)));
    } else seen.set(key, index + 1);
    const closest = nearest(image, words);
    if (closest === null) return element("li", {}, ...line);
    const share = element("span", { class: closest.share < LOW_OVERLAP ? "overlap low" : "overlap" },
      `${Math.round(100 * closest.share)} %`);
    return element("li", {}, element("details", {}, element("summary", {}, ...line, " ", share),
      element("p", {}, `${say("nearest_sentence").replace("{n}", closest.reference)} `, isolated(closest.text))));
  }));
}

function captionNode(image, row) {
  const text = image.c[row];
  if (text === null) return element("span", { class: "empty" }, say("no_caption"));
  if (text.trim() === "") return element("span", { class: "empty" }, say("empty_caption"));
  const mode = byId("compare").value;
  if (image.n?.[row] && mode !== "before") {
    return sentenceList(image, row, ({ start, end, text: part }) => {
      if (mode === "references" && image.r.length) return marked(againstReferences(part, image.r));
      if (mode !== "objects") return isolated(part);
      const inside = (image.h?.[row] ?? []).filter((mention) => mention[0] >= start && mention[1] <= end);
      return marked(hallucinated(part, inside.map((mention) => [mention[0] - start, mention[1] - start])));
    });
  }
  if (mode === "objects") return marked(hallucinated(text, image.h?.[row] ?? []));
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
  writeAddress();
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
    ? element("button", { type: "button", class: "picture" },
      element("img", { src: `data:image/jpeg;base64,${image.t}`, alt: alternative.slice(0, 300), loading: "lazy" }))
    : element("div", { class: "absent" }, say("no_picture"));
  if (image.t) picture.addEventListener("click", () => view(index));
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
  const legends = { objects: "legend_objects", references: "legend_references", before: "legend_before", none: "legend_none" };
  const mode = byId("compare").value;
  const paragraphs = mode !== "before" && data.images.some((image) => image.n);
  byId("legend").textContent = [say(legends[mode]), ...(paragraphs ? [say("legend_sentences")] : [])].join(" ");
  drawMore();
}

// ---- One picture in large -----------------------------------------------------------------------------------

let viewed = 0;
let sequence = [];

function view(position, images = null) {
  sequence = images ?? selected;
  viewed = Math.min(Math.max(position, 0), sequence.length - 1);
  const image = data.images[sequence[viewed]];
  const to = Number(byId("to").value);
  byId("large").replaceChildren(image.t
    ? element("img", { src: `data:image/jpeg;base64,${image.t}`, alt: `${say("image")} ${visible(image.i)}` })
    : element("div", { class: "absent" }, say("no_picture")));
  byId("viewer-id").replaceChildren(isolated(image.i));
  byId("viewer-text").replaceChildren(captionNode(image, to));
  byId("viewer-link").hidden = !image.l;
  if (image.l) byId("viewer-link").href = image.l;
  else byId("viewer-link").removeAttribute("href");
  if (!byId("viewer").open) byId("viewer").showModal();
}

byId("previous").addEventListener("click", () => view(viewed - 1, sequence));
byId("next").addEventListener("click", () => view(viewed + 1, sequence));
byId("close").addEventListener("click", () => byId("viewer").close());
byId("viewer").addEventListener("click", (event) => { if (event.target === byId("viewer")) byId("viewer").close(); });
byId("viewer").addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") view(viewed - 1, sequence);
  else if (event.key === "ArrowRight") view(viewed + 1, sequence);
});

const positions = new Map(data.images.map((image, index) => [image.i, index]));
const exampleButtons = [...document.querySelectorAll(".example .picture")]
  .filter((button) => data.images[positions.get(button.dataset.image)]?.t);
const exampleIndices = exampleButtons.map((button) => positions.get(button.dataset.image));
exampleButtons.forEach((button, position) => {
  const image = data.images[exampleIndices[position]];
  button.append(element("img", { src: `data:image/jpeg;base64,${image.t}`, alt: `${say("image")} ${visible(image.i)}` }));
  button.addEventListener("click", () => view(position, exampleIndices));
});

// ---- Explanations of metrics and of points in charts --------------------------------------------------------

function tip(node) {
  const text = node?.dataset.tip;
  byId("tooltip").hidden = !text;
  if (!text) return;
  byId("tooltip").textContent = text;
  const box = node.getBoundingClientRect();
  const size = byId("tooltip").getBoundingClientRect();
  byId("tooltip").style.left = `${Math.max(8, Math.min(innerWidth - size.width - 8, box.left + box.width / 2 - size.width / 2))}px`;
  byId("tooltip").style.top = `${box.top > size.height + 12 ? box.top - size.height - 6 : box.bottom + 6}px`;
}

for (const [enter, leave] of [["mouseover", "mouseout"], ["focusin", "focusout"]]) {
  document.addEventListener(enter, (event) => tip(event.target.closest?.("[data-tip]")));
  document.addEventListener(leave, () => tip(null));
}
document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip(null); });

// ---- The address holds what is chosen -----------------------------------------------------------------------

const CHOICES = ["sort", "metric", "from", "to", "failure", "compare", "search", "scope"];
const NAMES = { metric: data.metrics, from: data.checkpoints, to: data.checkpoints, failure: data.failures };
const DEFAULTS = {};
let addressed = false;

function writeAddress() {
  if (!addressed) return;
  const choice = new URLSearchParams();
  for (const id of CHOICES) {
    const value = byId(id).value;
    if (value !== DEFAULTS[id]) choice.set(id, NAMES[id] && value !== "" ? NAMES[id][Number(value)] : value);
  }
  const text = choice.toString();
  if (text || location.hash.includes("=")) {
    history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
  }
}

// Returns whether the address chooses anything; what it does not know is ignored.
function readAddress() {
  if (!location.hash.includes("=")) return false;
  const choice = new URLSearchParams(location.hash.slice(1));
  for (const id of CHOICES) {
    let value = choice.get(id) ?? DEFAULTS[id];
    if (choice.has(id) && NAMES[id] && value !== "") value = String(NAMES[id].indexOf(value));
    byId(id).value = value;
    if (id !== "search" && byId(id).value !== value) byId(id).value = DEFAULTS[id];
  }
  return true;
}

addEventListener("hashchange", () => { if (readAddress()) choose(); });

// ---- Copy and export of what is chosen ----------------------------------------------------------------------

function exported() {
  return selected.map((index) => {
    const image = data.images[index];
    const row = { image: image.i, references: image.r };
    data.checkpoints.forEach((name, checkpoint) => {
      row[`${name}: caption`] = image.c[checkpoint];
      data.metrics.forEach((metric, k) => { row[`${name}: ${metric}`] = image.s[k]?.[checkpoint] ?? null; });
    });
    return row;
  });
}

function table(separator) {
  const rows = exported();
  const heads = Object.keys(rows[0] ?? { image: "" });
  const cell = (value) => {
    let text = Array.isArray(value) ? value.join(" | ") : String(value ?? "");
    // A spreadsheet must not take a caption for a formula.
    if (typeof value !== "number" && /^[=+\-@\t\r]/u.test(text)) text = `'${text}`;
    if (separator === "\t") return text.replace(/[\t\r\n]+/gu, " ");
    return /[",\r\n]/u.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [heads, ...rows.map((row) => heads.map((head) => row[head]))]
    .map((line) => line.map(cell).join(separator)).join("\n") + "\n";
}

function download(name, text, type) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  const link = element("a", { href: address, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

async function copy(button, text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = element("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.textContent = say("copied");
  setTimeout(() => { button.textContent = say(button.dataset.t); }, 1500);
}

byId("copy_link").addEventListener("click", (event) => copy(event.target, location.href));
byId("copy_text").addEventListener("click", (event) => copy(event.target, table("\t")));
byId("export_csv").addEventListener("click", () => download("captions.csv", `\ufeff${table(",")}`, "text/csv"));
byId("export_json").addEventListener("click", () => download("captions.json", JSON.stringify(exported(), null, 1), "application/json"));
byId("print").addEventListener("change", (event) => document.documentElement.toggleAttribute("data-cards", event.target.checked));
byId("filter").addEventListener("click", (event) => {
  event.target.setAttribute("aria-expanded", String(byId("controls").classList.toggle("open")));
});

// ---- Language, theme, keys ----------------------------------------------------------------------------------

function translate() {
  document.documentElement.lang = language;
  for (const node of document.querySelectorAll("[data-t]")) node.textContent = say(node.dataset.t);
  for (const node of document.querySelectorAll("[data-t-label]")) node.setAttribute("aria-label", say(node.dataset.tLabel));
  for (const node of document.querySelectorAll(".term")) {
    node.dataset.tip = node.dataset[language];
    node.setAttribute("aria-describedby", "tooltip");
    node.removeAttribute("title");
  }
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
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("input, select, dialog")) return;
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

// A page without a set language follows the reader's last choice, then the browser.
function preferred() {
  let chosen = null;
  try { chosen = localStorage.getItem("captune-language"); } catch { /* storage may be switched off */ }
  if (chosen in data.words) return chosen;
  return data.follow && navigator.language.toLowerCase().startsWith("zh") ? "zh" : data.language;
}

language = preferred();
byId("language").value = language;
byId("language").addEventListener("change", (event) => {
  language = event.target.value;
  try { localStorage.setItem("captune-language", language); } catch { /* storage may be switched off */ }
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
addEventListener("beforeprint", () => {
  for (const node of document.querySelectorAll("main section > details")) node.open = true;
  if (byId("print").checked) while (shown < Math.min(selected.length, 200)) drawMore();
});

translate();
for (const id of CHOICES) DEFAULTS[id] = byId(id).value;
const linked = readAddress();
choose();
addressed = true;
if (linked) byId("images").scrollIntoView();

// ---- A training in progress ---------------------------------------------------------------------------------

function clock(seconds) {
  const rounded = Math.round(seconds);
  const pad = (value) => String(value).padStart(2, "0");
  const hours = Math.floor(rounded / 3600);
  return `${hours ? `${hours}:${pad(Math.floor(rounded / 60) % 60)}` : Math.floor(rounded / 60)}:${pad(rounded % 60)}`;
}

async function follow() {
  let state;
  try {
    state = await (await fetch("state")).json();
  } catch {
    byId("live").textContent = say("stopped");
    return;
  }
  const parts = [say(state.done ? "finished" : "running")];
  if (state.steps) parts.push(`${say("step")} ${state.step.toLocaleString("en")} / ${state.steps.toLocaleString("en")}`);
  if (state.loss !== null) parts.push(`${say("loss")} ${state.loss.toFixed(4)}`);
  if (!state.done && state.seconds_left !== null) parts.push(`${clock(state.seconds_left)} ${say("time_left")}`);
  byId("live").textContent = parts.join(" · ");
  if (data.live !== state.version) {
    sessionStorage.setItem("captune-scroll", String(scrollY));
    location.reload();
    return;
  }
  setTimeout(follow, 2000);
}

if (data.live) {
  const before = Number(sessionStorage.getItem("captune-scroll") ?? 0);
  sessionStorage.removeItem("captune-scroll");
  if (before) {
    while (document.documentElement.scrollHeight < before + innerHeight && shown < selected.length) drawMore();
    scrollTo(0, before);
  }
  follow();
}
