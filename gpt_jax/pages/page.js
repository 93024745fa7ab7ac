"use strict";
(() => {
  const tip = document.getElementById("tip");

  // Without this script the browser shows <title> and title="…" itself.
  for (const title of document.querySelectorAll("svg title")) {
    title.parentNode.dataset.tip = title.textContent;
    title.remove();
  }
  for (const cell of document.querySelectorAll("main [title]")) {
    cell.dataset.tip = cell.title;
    cell.removeAttribute("title");
  }

  function show(text, event) {
    tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = Math.min(event.clientX + 14, document.documentElement.clientWidth - box.width - 8);
    const above = event.clientY - box.height - 12;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${above < 8 ? event.clientY + 18 : above}px`;
  }

  function highlight(svg, arm) {
    svg.classList.toggle("focus", arm !== null);
    for (const part of svg.querySelectorAll(".arm")) part.classList.toggle("hot", part.dataset.arm === arm);
  }

  function nearest(svg, event) {
    let best = null, least = 26 ** 2;
    for (const line of svg.querySelectorAll("polyline.line")) {
      const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(line.getScreenCTM().inverse());
      for (let i = 0; i < line.points.numberOfItems; i++) {
        const point = line.points.getItem(i);
        const distance = (point.x - at.x) ** 2 + (point.y - at.y) ** 2;
        if (distance < least) { least = distance; best = [line, i]; }
      }
    }
    return best;
  }

  function number(text) {
    return Number(text).toLocaleString("en", { maximumSignificantDigits: 5 });
  }

  let lit = null;
  document.addEventListener("pointermove", (event) => {
    const target = event.target instanceof Element ? event.target : document.body;
    const svg = target.closest("figure > svg");
    if (lit !== null && lit !== svg) { highlight(lit, null); lit = null; }
    const marked = target.closest("[data-tip]");
    let arm = target.closest(".arm")?.dataset.arm ?? null;
    let text = marked === null ? null : marked.dataset.tip;
    if (svg !== null && text === null) {
      const found = nearest(svg, event);
      if (found !== null) {
        const [line, i] = found;
        const [x, y] = line.dataset.values.split(" ")[i].split(",");
        text = `${line.dataset.name}: ${number(y)}\n${line.dataset.x}: ${number(x)}`;
        arm = line.parentNode.dataset.arm;
      }
    }
    if (svg !== null) { highlight(svg, arm); lit = svg; }
    if (text) show(text, event); else tip.hidden = true;
  });
  document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
      const value = (row) => row.cells[column].dataset.value;
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === "" || y === "") return (x === "") - (y === "");  // what was not measured comes last
        const difference = head.classList.contains("text") ? x.localeCompare(y, "en", { numeric: true }) : x - y;
        return sign * difference;
      });
      table.tBodies[0].append(...rows);
    }));
  }

  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open], .long)")];
    for (const part of closed) part.open = true;
  });
  addEventListener("afterprint", () => { for (const part of closed) part.open = false; });
})();
