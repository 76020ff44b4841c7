"use strict";
// Keys, and one answer a screen. Without this script everything can be clicked.
(() => {
  const form = document.getElementById("answer");
  const undo = document.getElementById("undo");
  let sent = false;
  for (const each of [form, undo]) {
    each?.addEventListener("submit", (event) => {
      if (sent) event.preventDefault();
      sent = true;
    });
  }
  // A page that the browser brings back from its memory may be used again.
  addEventListener("pageshow", () => { sent = false; });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
    if (event.target.matches("input:not([type=radio]), select, textarea")) return;
    const key = event.key.toLowerCase();
    if (key === "u" && undo) return undo.requestSubmit();
    if (!form) {
      if (key === "enter" && event.target === document.body) document.getElementById("start")?.click();
      return;
    }
    if (form.dataset.part === "pairwise") {
      const wanted = { arrowleft: "1", arrowright: "2", arrowdown: "0", "=": "0" }[key] ?? key;
      const button = form.querySelector(`button[data-key="${CSS.escape(wanted)}"]`);
      if (button) { event.preventDefault(); form.requestSubmit(button); }
      return;
    }
    const rows = [...form.querySelectorAll("fieldset")];
    if (/^[1-5]$/.test(key)) {
      const focused = rows.findIndex((row) => row.contains(document.activeElement));
      const open = rows.findIndex((row) => !row.querySelector(":checked"));
      const place = focused >= 0 ? focused : Math.max(open, 0);
      rows[place].querySelector(`input[value="${key}"]`).checked = true;
      const next = rows[place + 1];
      (next ? next.querySelector(":checked") ?? next.querySelector("input") : form.querySelector(".button")).focus();
    } else if (key === "enter" && event.target.matches("input")) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
})();
