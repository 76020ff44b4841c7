"use strict";
// One caption at a time. The text is saved while it is typed; nothing moves on before the server has it on the disk.
(() => {
  const words = JSON.parse(document.body.dataset.words);
  const at = (id) => document.getElementById(id);
  const format = (text, ...values) => values.reduce((rest, value) => rest.replace("{}", value), text);
  const PAGE = 40;
  const WAIT = 400;
  let items = [];
  let counts = {};
  let index = 0;
  let shown = 0;
  let current = null;
  let timer = null;
  let saving = Promise.resolve(true);

  function make(tag, properties = {}, ...children) {
    const node = Object.assign(document.createElement(tag), properties);
    node.append(...children);
    return node;
  }

  async function request(path, body) {
    const options = body === undefined ? {} : {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
    };
    let answer;
    try {
      answer = await fetch(path, options);
    } catch {
      throw Object.assign(new Error(words.no_server), { unanswered: true });
    }
    const value = await answer.json().catch(() => ({ error: `HTTP ${answer.status}` }));
    if (!answer.ok) throw Object.assign(new Error(value.error), { current: value.current });
    return value;
  }

  function report(text, failed = false) {
    at("saved").textContent = text;
    at("saved").classList.toggle("failed", failed);
  }

  function complain(error) {
    report(error.unanswered ? error.message : format(words.not_saved, error.message), true);
  }

  // The list: a page of it is drawn, with thumbnails that the browser loads when they are seen.
  async function load(number = null) {
    const search = new URLSearchParams({ filter: at("filter").value, search: at("search").value });
    const answer = await request(`/items?${search}`);
    items = answer.items.map(([item, name, status]) => ({ number: item, name, status }));
    counts = answer.counts;
    index = Math.max(0, items.findIndex((item) => item.number === number));
    shown = Math.floor(index / PAGE) * PAGE;
    drawCounts();
    drawList();
    await open(index);
  }

  function drawCounts() {
    at("counts").textContent = format(words.progress, counts.accepted, counts.all, counts.edited, counts.open);
    at("progress").max = Math.max(1, counts.all);
    at("progress").value = counts.accepted;
  }

  function drawList() {
    const page = items.slice(shown, shown + PAGE);
    const { scrollTop } = at("items");
    at("matches").textContent = page.length
      ? format(words.matches, shown + 1, shown + page.length, items.length) : words.no_matches;
    at("items").replaceChildren(...page.map((item, place) => {
      const button = make("button", { type: "button" },
        make("img", { src: `/thumbnails/${item.number}`, alt: "", loading: "lazy", width: 48, height: 48 }),
        make("span", { className: "name", textContent: item.name, title: item.name }),
        make("span", { className: `status ${item.status}`, textContent: words[item.status] }));
      if (shown + place === index) button.setAttribute("aria-current", "true");
      button.addEventListener("click", () => go(shown + place));
      return make("li", {}, button);
    }));
    at("items").scrollTop = scrollTop;
    at("earlier").disabled = shown === 0;
    at("later").disabled = shown + PAGE >= items.length;
  }

  // Scrolls the list only, never the page, which would hide the image on a phone.
  function scrollList() {
    const list = at("items");
    const row = list.querySelector("[aria-current]")?.parentElement;
    if (!row) return;
    const top = row.offsetTop - list.offsetTop;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + row.offsetHeight > list.scrollTop + list.clientHeight) {
      list.scrollTop = top + row.offsetHeight - list.clientHeight;
    }
  }

  function show(detail) {
    current = detail;
    const item = items[index];
    if (item && item.number === detail.number && item.status !== detail.status) {
      counts[item.status] -= 1;
      counts[detail.status] += 1;
      item.status = detail.status;
      drawCounts();
      drawList();
    }
    at("name").textContent = detail.name;
    at("status").textContent = words[detail.status];
    at("status").className = `status ${detail.status}`;
    at("restore").disabled = detail.original === null || detail.original === detail.text;
    at("conflict").hidden = true;
  }

  async function open(place) {
    clearTimeout(timer);
    index = place;
    at("card").hidden = !items.length;
    at("nothing").hidden = items.length > 0;
    if (!items.length) { current = null; return; }
    if (index < shown || index >= shown + PAGE) shown = Math.floor(index / PAGE) * PAGE;
    const { number } = items[index];
    const detail = await request(`/items/${number}`);
    show(detail);
    at("text").value = detail.text;
    at("image").alt = format(words.image_of, detail.name);
    at("image").src = `/images/${number}`;
    at("previous").disabled = index === 0;
    at("next").disabled = index === items.length - 1;
    report("");
    drawList();
    scrollList();
    if (items[index + 1]) new Image().src = `/images/${items[index + 1].number}`;
  }

  // Saves are sent one after the other, each based on the version that the last one returned.
  function save(accept = false, force = false) {
    clearTimeout(timer);
    timer = null;
    saving = saving.then(() => send(accept, force));
    return saving;
  }

  async function send(accept, force) {
    if (!current) return true;
    if (!at("conflict").hidden && !force) return false;
    const text = at("text").value;
    if (text.trim() === current.text && (!accept || current.status === "accepted")) return true;
    report(words.saving);
    try {
      show(await request(`/items/${current.number}`, { text, version: current.version, accept }));
      report(words.saved);
      if (at("text").value !== text) planSave();
      return true;
    } catch (error) {
      if (error.current) {
        at("theirs").textContent = error.current.text;
        at("conflict").hidden = false;
        at("conflict").dataset.version = error.current.version;
        at("take").focus();
        report("");
      } else {
        complain(error);
        if (error.unanswered) planSave(5 * WAIT);
      }
      return false;
    }
  }

  function planSave(wait = WAIT) {
    clearTimeout(timer);
    timer = setTimeout(save, wait);
  }

  async function go(place) {
    if (place < 0 || place >= items.length) return;
    at("text").readOnly = true;
    try {
      if (await save()) await open(place);
    } catch (error) {
      complain(error);
    } finally {
      at("text").readOnly = false;
    }
  }

  async function accept() {
    if (!current || !(await save(true))) return;
    if (index < items.length - 1) await go(index + 1);
  }

  async function undo() {
    if (!(await save())) return;
    try {
      const { undone } = await request("/undo", {});
      if (!undone) return report(words.nothing_to_undo);
      await reload(undone.number);
      report(words.undone);
    } catch (error) { complain(error); }
  }

  // The same list with fresh statuses; a caption that the filter leaves out is shown in the list of all.
  async function reload(number) {
    await load(number);
    if (items[index]?.number !== number) {
      at("filter").value = "all";
      at("search").value = "";
      await load(number);
    }
  }

  at("text").addEventListener("input", () => { report(""); planSave(); });
  at("text").addEventListener("blur", () => { if (timer !== null) save(); });
  at("image").addEventListener("error", () => { at("image").alt = words.no_image; });
  at("accept").addEventListener("click", accept);
  at("next").addEventListener("click", () => go(index + 1));
  at("previous").addEventListener("click", () => go(index - 1));
  at("undo").addEventListener("click", undo);
  at("restore").addEventListener("click", () => { at("text").value = current.original; save(); });
  at("take").addEventListener("click", async () => {
    at("conflict").hidden = true;
    await open(index);
    at("text").focus();
  });
  at("keep").addEventListener("click", async () => {
    current.version = at("conflict").dataset.version;
    current.text = at("theirs").textContent;
    await save(false, true);
    at("text").focus();
  });
  at("earlier").addEventListener("click", () => { shown = Math.max(0, shown - PAGE); drawList(); });
  at("later").addEventListener("click", () => { shown += PAGE; drawList(); });

  let searching = null;
  const refilter = async () => {
    if (!(await save())) return;
    try { await load(current?.number ?? null); } catch (error) { complain(error); }
  };
  at("filter").addEventListener("change", refilter);
  at("search").addEventListener("input", () => { clearTimeout(searching); searching = setTimeout(refilter, 250); });
  at("filters").addEventListener("submit", (event) => event.preventDefault());

  // Find and replace, with a preview.
  let previewing = null;
  let expected = 0;
  const replacement = (count) => ({
    find: at("find").value, replace: at("with").value, match_case: at("case").checked,
    filter: at("filter").value, search: at("search").value, count,
  });

  async function preview() {
    at("apply").disabled = true;
    at("samples").replaceChildren();
    if (!at("find").value) { at("preview").textContent = ""; return; }
    try {
      const answer = await request("/preview", replacement(0));
      expected = answer.count;
      at("preview").textContent = format(words.would_change, expected);
      at("samples").replaceChildren(...answer.samples.map((sample) => make("li", {},
        make("span", { className: "name", textContent: sample.name }),
        make("del", { textContent: sample.before }), make("ins", { textContent: sample.after }))));
      at("apply").disabled = expected === 0;
    } catch (error) { at("preview").textContent = error.message; }
  }

  for (const id of ["find", "with", "case"]) {
    at(id).addEventListener("input", () => { clearTimeout(previewing); previewing = setTimeout(preview, 200); });
  }
  at("open-replace").addEventListener("click", async () => {
    if (!(await save())) return;
    at("replace").showModal();
    preview();
  });
  at("replacement").addEventListener("submit", (event) => event.preventDefault());
  at("close").addEventListener("click", () => at("replace").close());
  at("apply").addEventListener("click", async () => {
    at("apply").disabled = true;
    at("preview").textContent = words.saving;
    try {
      const { count } = await request("/replace", replacement(expected));
      at("replace").close();
      await reload(current.number);
      report(format(words.replaced, count));
    } catch (error) { at("preview").textContent = error.message; }
  });

  document.addEventListener("keydown", (event) => {
    if (at("replace").open || event.isComposing) return;
    if (event.key === "PageDown" || event.key === "PageUp") {
      event.preventDefault();
      return void go(index + (event.key === "PageDown" ? 1 : -1));
    }
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); return void accept(); }
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.matches("textarea, input, select");
    if (typing) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const action = {
      a: accept, n: () => go(index + 1), p: () => go(index - 1), u: undo,
      e: () => at("text").focus(), "/": () => at("search").focus(),
    }[event.key.toLowerCase()];
    if (action) { event.preventDefault(); action(); }
  });

  // Leaving with a text that is not on the disk yet asks first.
  addEventListener("beforeunload", (event) => {
    if (current && at("text").value.trim() !== current.text) { save(); event.preventDefault(); }
  });
  load().catch(complain);
})();
