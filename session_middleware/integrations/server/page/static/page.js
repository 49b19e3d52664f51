// Reads the page again when its session has changed, and puts only the differences in place, so that nothing flickers,
// what a reader has opened stays open, and the scroll position is kept. Without this script the page works too.
"use strict";
(() => {
  const main = document.getElementById("main");
  const state = document.getElementById("live-state");
  const DELAY_MS = 120; // changes in this time are one
  let source = null, timer = null, isReading = false, isDue = false;

  const say = (text) => { if (state.textContent !== text) state.textContent = text; };

  async function read() {
    if (isReading) { isDue = true; return; }
    isReading = true;
    try {
      const response = await fetch(main.dataset.address, { headers: { Accept: "text/html" } });
      const found = new DOMParser().parseFromString(await response.text(), "text/html");
      if (!response.ok) { say(found.querySelector("h1")?.textContent ?? "Not here any more"); stop(); return; }
      update(found);
      say("Live");
    } catch {
      say("Not connected; trying again");
    } finally {
      isReading = false;
      if (isDue) { isDue = false; read(); }
    }
  }

  function update(found) {
    const page = document.documentElement;
    const wasAtEnd = main.querySelector(".talk") && page.scrollTop + innerHeight > page.scrollHeight - 60;
    Idiomorph.morph(main, found.getElementById("main"), {
      callbacks: {
        beforeAttributeUpdated: (name, node) => !(name === "open" && node.localName === "details"),
      },
    });
    document.title = found.title;
    if (wasAtEnd) scrollTo({ top: page.scrollHeight });
  }

  const soon = () => { timer ??= setTimeout(() => { timer = null; read(); }, DELAY_MS); };

  function start() {
    if (source || !main.dataset.live) return;
    let wasOpen = false;
    source = new EventSource(main.dataset.live);
    source.addEventListener("open", () => { if (wasOpen) read(); else say("Live"); wasOpen = true; });
    source.addEventListener("change", soon);
    source.addEventListener("end", () => { stop(); read().then(() => say("")); });
    source.addEventListener("error", () => say("Not connected; trying again"));
  }

  function stop() { source?.close(); source = null; }

  // A browser opens few connections to a server, so that a page that nobody sees does not hold one.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) stop();
    else if (main.dataset.live) { read(); start(); }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey) return;
    const search = document.getElementById("search");
    if (search && !event.target.closest("input, select, textarea")) { event.preventDefault(); search.focus(); }
  });
  if (!document.hidden) start();
})();
