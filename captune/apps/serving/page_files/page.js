"use strict";
(() => {
  const facts = JSON.parse(document.body.dataset.facts);
  const at = (id) => document.getElementById(id);
  const NUMBERS = ["max_tokens", "temperature", "top_p", "num_beams", "repetition_penalty", "seed"];
  let image = null;
  let dialogues = new Map();
  let running = null;

  function make(tag, properties = {}, ...children) {
    const node = Object.assign(document.createElement(tag), properties);
    node.append(...children);
    return node;
  }

  function complain(text) {
    at("notice").textContent = text;
    at("notice").hidden = !text;
  }

  at("model").textContent = facts.described;

  // Browsers lend the clipboard to pages of this machine and of HTTPS only.
  function copyButton(text) {
    const button = make("button", { type: "button", className: "copy", textContent: "Copy" });
    button.setAttribute("aria-label", "Copy the answer");
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    });
    return button;
  }

  // Checkpoints: the first and the last are chosen at first.
  for (const [place, name] of facts.models.entries()) {
    const box = make("input", { type: "checkbox", value: name, checked: place === 0 || place === facts.models.length - 1 });
    box.addEventListener("change", showColumns);
    at("models").append(make("label", {}, box, name));
  }

  at("report").hidden = !facts.report;

  // References: captions of people, of an example only.
  function showReferences(references) {
    at("references").hidden = !references.length;
    at("references").querySelector("ul").replaceChildren(...references.map((text) => make("li", { textContent: text })));
  }

  for (const [place, references] of facts.examples.entries()) {
    const picture = make("img", { src: `/examples/${place}`, alt: `Example ${place + 1}` });
    const button = make("button", { type: "button" }, picture);
    button.addEventListener("click", async () => {
      const answer = await fetch(`/examples/${place}`);
      const blob = await answer.blob();
      take(new File([blob], `example ${place + 1}`, { type: blob.type }), references);
    });
    at("examples").append(button);
  }

  const chosen = () => [...at("models").querySelectorAll(":checked")].map((box) => box.value);

  function column(name) {
    if (!dialogues.has(name)) {
      const node = make("div", { className: "column" }, make("h2", { textContent: name }));
      node.dataset.model = name;
      dialogues.set(name, { messages: [], node });
    }
    return dialogues.get(name);
  }

  function showColumns() {
    at("columns").replaceChildren(...chosen().map((name) => column(name).node));
  }

  async function startAgain() {
    while (running) {
      running.stop.abort();
      await running.done;
    }
    dialogues = new Map();
    showColumns();
  }

  // An image from wherever: it begins a new dialogue, and is described at once.
  function take(file, references = []) {
    complain("");
    if (file.type && !file.type.startsWith("image/")) {
      complain(`${file.name} is not an image. Please choose a JPEG, PNG or WebP file.`);
      return;
    }
    if (!file.size) {
      complain(`${file.name} is empty.`);
      return;
    }
    const reader = new FileReader();
    reader.onerror = () => complain(`${file.name} cannot be read.`);
    reader.onload = async () => {
      const data = String(reader.result);
      image = data;
      at("preview").src = data;
      at("preview").hidden = false;
      at("invitation").hidden = true;
      showReferences(references);
      await startAgain();
      ask("");
    };
    reader.readAsDataURL(file);
  }
  at("preview").addEventListener("error", () => {
    at("preview").hidden = true;
    at("invitation").hidden = false;
  });

  const drop = at("drop");
  drop.addEventListener("click", () => at("file").click());
  drop.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); at("file").click(); }
  });
  at("file").addEventListener("change", () => {
    if (at("file").files.length) take(at("file").files[0]);
    at("file").value = "";
  });
  addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
  addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    if (event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
    else complain("That was not a file. Please drop an image file.");
  });
  addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find((each) => each.type.startsWith("image/"));
    if (file) { event.preventDefault(); take(file); }
  });

  function settings() {
    const given = {};
    for (const id of NUMBERS) {
      const value = at(id).valueAsNumber;
      if (Number.isFinite(value)) given[id] = value;
    }
    return given;
  }

  async function ask(question) {
    if (running) return;
    const names = chosen();
    if (!names.length) return complain("Please choose a checkpoint.");
    if (!image) return complain("Please choose an image.");
    complain("");
    const stop = new AbortController();
    at("stop").disabled = false;
    at("send").disabled = true;
    showColumns();
    running = { stop, done: Promise.all(names.map((name) => answerIn(name, question, stop.signal))) };
    await running.done;
    running = null;
    at("stop").disabled = true;
    at("send").disabled = false;
  }

  async function answerIn(name, question, signal) {
    const { messages, node } = column(name);
    const content = [];
    // The image stands in the first question; the server reads the dialogue anew each time.
    if (image && !messages.length) content.push({ type: "image_url", image_url: { url: image } });
    if (question) content.push({ type: "text", text: question });
    else if (messages.length) content.push({ type: "text", text: facts.instructions[name] });
    messages.push({ role: "user", content });
    const answer = make("p", { className: "answer waiting" });
    node.append(make("p", { className: "question", textContent: question || facts.instructions[name] }), answer);
    let text = "";
    try {
      for await (const event of events({ model: name, messages, stream: true, ...settings() }, signal)) {
        if (event.error) throw new Error(event.error.message);
        const choice = event.choices[0];
        text += choice?.delta?.content ?? "";
        answer.textContent = text;
        if (choice?.finish_reason === "length") node.append(make("p", { className: "cut", textContent: "(cut at the longest answer)" }));
      }
      messages.push({ role: "assistant", content: text });
      if (!text) answer.textContent = "(no text)";
      else if (navigator.clipboard) node.append(copyButton(text));
    } catch (error) {
      if (error.name === "AbortError" && text) {
        messages.push({ role: "assistant", content: text });
      } else {
        // The question was not answered and may be asked again.
        messages.pop();
        answer.classList.add("failed");
        answer.textContent = error.name === "AbortError" ? "(stopped)" : friendly(error);
      }
    }
    answer.classList.remove("waiting");
  }

  function friendly(error) {
    return error instanceof TypeError ? "The server does not answer. Is it still running?" : error.message;
  }

  async function* events(body, signal) {
    const answer = await fetch("/v1/chat/completions", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal,
    });
    if (!answer.ok) {
      const problem = await answer.json().catch(() => null);
      throw new Error(problem?.error?.message ?? `The server answered with ${answer.status}.`);
    }
    let rest = "";
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line === "data: [DONE]") return;
        if (line.startsWith("data: ")) yield JSON.parse(line.slice(6));
      }
    }
  }

  at("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    const question = at("question").value.trim();
    at("question").value = "";
    ask(question);
  });
  at("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); at("ask").requestSubmit(); }
  });
  at("stop").addEventListener("click", () => running?.stop.abort());
  at("again").addEventListener("click", startAgain);
  showColumns();
})();
