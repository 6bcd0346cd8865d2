"use strict";
// Tells the value under the pointer, the finger or the focus. Without it the page still holds all.
(() => {
  const tip = document.getElementById("tip");
  let marked = null;

  function unmark() {
    if (marked) marked.classList.remove("on");
    marked = null;
  }

  function hide() {
    tip.classList.remove("on");
    unmark();
  }

  function show(text, x, y, mark) {
    unmark();
    marked = mark;
    marked.classList.add("on");
    tip.textContent = text;
    tip.classList.add("on");
    const width = tip.offsetWidth, height = tip.offsetHeight;
    const left = Math.min(Math.max(8, x - width / 2), document.documentElement.clientWidth - width - 8);
    tip.style.left = Math.max(8, left) + "px";
    tip.style.top = (y - height - 12 >= 4 ? y - height - 12 : y + 20) + "px";
  }

  function showAt(element, text) {
    const box = element.getBoundingClientRect();
    show(text, box.left + box.width / 2, box.top, element);
  }

  // A page that scrolls under a still pointer makes events too; they must not hide the focus's tip.
  let last = [-1, -1];
  function moved(event) {
    const [x, y] = last;
    last = [event.clientX, event.clientY];
    return event.pointerType === "touch" || x !== event.clientX || y !== event.clientY;
  }

  const nameOf = (head) => head.abbr || head.textContent.trim();

  function cellText(cell) {
    const table = cell.closest("table"), row = cell.parentElement;
    const heads = table.tHead.rows[table.tHead.rows.length - 1].cells;
    const known = {
      row: nameOf(row.cells[0]),
      column: nameOf(heads[cell.cellIndex]),
      value: cell.textContent.trim() || "0",
      total: row.dataset.total,
    };
    return table.dataset.tip.replace(/\{(\w+)\}/g, (_, key) => known[key]);
  }

  // Charts: the nearest of the places that tell their values.
  function showPlace(chart, index) {
    const tips = chart.tips;
    chart.index = Math.min(Math.max(0, index), tips.length - 1);
    const [place, text] = tips[chart.index];
    const cursor = chart.querySelector(".cursor"), box = chart.getBoundingClientRect();
    cursor.setAttribute("transform", "translate(" + place + " 0)");
    const x = box.left + (place / chart.viewBox.baseVal.width) * box.width;
    show(text, x, box.top + 12, cursor);
  }

  function nearest(chart, clientX) {
    const box = chart.getBoundingClientRect();
    const x = ((clientX - box.left) / box.width) * chart.viewBox.baseVal.width;
    let best = 0;
    chart.tips.forEach(([place], i) => {
      if (Math.abs(place - x) < Math.abs(chart.tips[best][0] - x)) best = i;
    });
    return best;
  }

  for (const chart of document.querySelectorAll("svg[data-tips]")) {
    chart.tips = JSON.parse(chart.dataset.tips);
    chart.index = 0;
    if (!chart.tips.length) continue;
    chart.addEventListener("pointermove", (event) => {
      if (moved(event)) showPlace(chart, nearest(chart, event.clientX));
    });
    chart.addEventListener("pointerdown", (event) => showPlace(chart, nearest(chart, event.clientX)));
    chart.addEventListener("focus", () => showPlace(chart, chart.index));
    chart.addEventListener("keydown", (event) => {
      const last = chart.tips.length - 1;
      const next = { ArrowLeft: chart.index - 1, ArrowRight: chart.index + 1, Home: 0, End: last }[event.key];
      if (next === undefined) return;
      event.preventDefault();
      showPlace(chart, next);
    });
  }

  // Tables that are heat maps: one stop for the tab key, then arrows.
  for (const table of document.querySelectorAll("table.grid")) {
    const first = table.querySelector("tbody td");
    if (first) first.tabIndex = 0;
    table.addEventListener("keydown", (event) => {
      const cell = event.target.closest("td");
      const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (!cell || !(move || event.key === "Home" || event.key === "End")) return;
      event.preventDefault();
      const row = cell.parentElement, rows = table.tBodies[0].rows;
      let [y, x] = [row.sectionRowIndex, cell.cellIndex];
      if (move) [y, x] = [y + move[0], x + move[1]];
      else x = event.key === "Home" ? 1 : row.cells.length - 1;
      const next = rows[y] && x > 0 && rows[y].cells[x];
      if (next) enter(table, next);
    });
    table.addEventListener("focusin", (event) => {
      if (event.target.matches("td")) showAt(event.target, cellText(event.target));
    });
    table.addEventListener("click", (event) => {
      const cell = event.target.closest("tbody td");
      if (cell) enter(table, cell);
    });
  }

  function enter(table, cell) {
    const before = table.querySelector("td[tabindex]");
    if (before) before.removeAttribute("tabindex");
    cell.tabIndex = 0;
    cell.focus();
  }

  // Maps of many fields: arrows go from one field to the next.
  for (const map of document.querySelectorAll("svg[data-walk]")) {
    const fields = [...map.querySelectorAll("[data-tip]")];
    let index = 0;
    const tell = () => fields.length && showAt(fields[index], fields[index].dataset.tip);
    map.addEventListener("focus", tell);
    map.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
      if (!move) return;
      event.preventDefault();
      index = Math.min(Math.max(0, index + move), fields.length - 1);
      tell();
    });
  }

  document.addEventListener("pointerover", (event) => {
    if (!moved(event)) return;
    const cell = event.target.closest("table.grid tbody td");
    const chart = event.target.closest("svg[data-tips]");
    const told = event.target.closest("[data-tip]:not(table)");
    if (cell) showAt(cell, cellText(cell));
    else if (told) showAt(told, told.dataset.tip);
    else if (chart && chart.tips.length) showPlace(chart, nearest(chart, event.clientX));
    else hide();
  });
  document.addEventListener("focusout", hide);
  document.addEventListener("wheel", hide, { passive: true });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
  });

  // Paper shows what is folded too.
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    opened.forEach((part) => (part.open = true));
  });
  addEventListener("afterprint", () => opened.forEach((part) => (part.open = false)));
})();
