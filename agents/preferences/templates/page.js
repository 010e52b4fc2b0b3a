"use strict";
// Keys, time in sight, no form sent twice, and a page that waits. Everything works without this file.
(() => {
  const keysOn = () => { const box = document.getElementById("keys"); return !box || box.checked; };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.repeat || event.defaultPrevented) return;
    const inText = event.target.closest("textarea, input:not([type=checkbox]):not([type=radio])");
    if (inText) { if (event.key === "Escape") event.target.blur(); return; }
    if (event.target.matches("input[type=radio]") && event.key.startsWith("Arrow")) return;  // they move in the scale
    if (event.target.matches("input") && event.key === "Enter") event.preventDefault();  // it would send the form
    if (!keysOn()) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const wanted = [...document.querySelectorAll("[data-keys]")].find((each) => each.dataset.keys.split(" ").includes(key));
    if (!wanted) return;
    event.preventDefault();
    wanted.click();
  });

  const form = document.querySelector("form[data-timed]");
  if (form) {
    const field = form.elements.namedItem("seconds");
    let seen = Number(field.dataset.elapsed) * 1000, since = document.hidden ? null : performance.now();
    document.addEventListener("visibilitychange", () => {
      if (document.hidden && since !== null) { seen += performance.now() - since; since = null; }
      else if (!document.hidden && since === null) since = performance.now();
    });
    form.addEventListener("submit", () => {
      field.value = ((seen + (since === null ? 0 : performance.now() - since)) / 1000).toFixed(2);
    });
    const comment = form.elements.namedItem("comment");
    comment.addEventListener("input", () => { comment.rows = Math.min(6, comment.value.split("\n").length); });
  }

  for (const each of document.querySelectorAll("form[method=post]")) {
    let sent = false;
    each.addEventListener("submit", (event) => { if (sent) event.preventDefault(); sent = true; });
    window.addEventListener("pageshow", () => { sent = false; });
  }

  const status = document.querySelector("[data-announce]");  // a live region speaks of what changes, not of what is there
  if (status) {
    const parts = [...status.childNodes];
    status.replaceChildren();
    setTimeout(() => status.replaceChildren(...parts), 150);
  }

  const waiting = document.querySelector("[data-wait]");
  if (waiting) {
    const ask = async () => {
      try {
        const answer = document.hidden ? { ready: false } : await (await fetch(waiting.dataset.wait)).json();
        if (answer.ready) { location.assign("/compare"); return; }
      } catch { /* the server is away; it may come back */ }
      setTimeout(ask, 2000);
    };
    setTimeout(ask, 2000);
  }
})();
