"use strict";
// Tells the value under the pointer, the finger or the focus. Without it the page still holds all.
(() => {
  const tip = document.getElementById("tip");
  let marked = null;

  function hide() {
    tip.classList.remove("on");
    if (marked) marked.classList.remove("on");
    marked = null;
  }

  function show(text, x, y, mark) {
    hide();
    marked = mark;
    marked.classList.add("on");
    tip.textContent = text;
    tip.classList.add("on");
    const width = tip.offsetWidth, above = y - tip.offsetHeight - 12;
    const left = Math.min(x - width / 2, document.documentElement.clientWidth - width - 8);
    tip.style.left = Math.max(8, left) + "px";
    tip.style.top = (above >= 4 ? above : y + 20) + "px";
  }

  function showAt(element, text) {
    const box = element.getBoundingClientRect();
    show(text, box.left + box.width / 2, box.top, element);
  }

  // Keys go from value to value: `count` of them, `across` in a row.
  function walk(element, count, across, go) {
    element.addEventListener("keydown", (event) => {
      const at = element.at, first = at - (at % across), last = first + across - 1;
      const next = {
        ArrowLeft: Math.max(first, at - 1), ArrowRight: Math.min(last, at + 1),
        ArrowUp: at - across, ArrowDown: at + across, Home: first, End: last,
      }[event.key];
      if (next === undefined || next < 0 || next >= count) return;
      event.preventDefault();
      go(next);
    });
  }

  // Charts: the nearest of the places that tell their values.
  for (const chart of document.querySelectorAll("svg[data-tips]")) {
    const tips = JSON.parse(chart.dataset.tips), cursor = chart.querySelector(".cursor");
    const go = (at) => {
      const [place, text] = tips[at], box = chart.getBoundingClientRect();
      chart.at = at;
      cursor.setAttribute("transform", "translate(" + place + " 0)");
      const x = box.left + (place / chart.viewBox.baseVal.width) * box.width;
      show(text, x, box.top + 12, cursor);
    };
    chart.follow = (event) => {
      const box = chart.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * chart.viewBox.baseVal.width;
      const away = tips.map(([place]) => Math.abs(place - x));
      if (tips.length) go(away.indexOf(Math.min(...away)));
    };
    chart.at = 0;
    chart.addEventListener("pointerdown", chart.follow);
    if (tips.length) chart.addEventListener("focus", () => go(chart.at));
    walk(chart, tips.length, tips.length, go);
  }

  // Maps of many fields: arrows go from one field to the next.
  for (const map of document.querySelectorAll("svg[data-walk]")) {
    const fields = [...map.querySelectorAll("[data-tip]")];
    const go = (at) => {
      map.at = at;
      if (fields.length) showAt(fields[at], fields[at].dataset.tip);
    };
    map.at = 0;
    map.addEventListener("focus", () => go(map.at));
    walk(map, fields.length, fields.length, go);
  }

  // Tables that are heat maps: one stop for the tab key, then arrows.
  const nameOf = (head) => head.abbr || head.textContent.trim();
  function tell(cell) {
    const table = cell.closest("table"), row = cell.parentElement;
    const known = {
      row: nameOf(row.cells[0]),
      column: nameOf([...table.tHead.rows].pop().cells[cell.cellIndex]),
      value: cell.textContent.trim() || "0",
      total: row.dataset.total,
    };
    showAt(cell, table.dataset.tip.replace(/\{(\w+)\}/g, (_, key) => known[key]));
  }
  for (const table of document.querySelectorAll("table.grid")) {
    const cells = [...table.querySelectorAll("tbody td")];
    const go = (at) => {
      cells[table.at].removeAttribute("tabindex");
      table.at = at;
      cells[at].tabIndex = 0;
      cells[at].focus();
    };
    table.at = 0;
    if (cells.length) cells[0].tabIndex = 0;
    walk(table, cells.length, cells.length / table.tBodies[0].rows.length, go);
    table.addEventListener("focusin", (event) => tell(event.target));
    table.addEventListener("click", (event) => {
      const at = cells.indexOf(event.target);
      if (at >= 0) go(at);
    });
  }

  // A page that scrolls under a still pointer makes events too; they must not hide the focus's tip.
  let last = [-1, -1];
  function point(event) {
    const [x, y] = last, target = event.target;
    last = [event.clientX, event.clientY];
    if (event.pointerType !== "touch" && x === event.clientX && y === event.clientY) return;
    const cell = target.closest("table.grid tbody td"), chart = target.closest("svg[data-tips]");
    const told = target.closest("[data-tip]:not(table)");
    if (cell) tell(cell);
    else if (told) showAt(told, told.dataset.tip);
    else if (chart) chart.follow(event);
    else hide();
  }
  document.addEventListener("pointerover", point);
  document.addEventListener("pointermove", point);
  document.addEventListener("focusout", hide);
  document.addEventListener("wheel", hide, { passive: true });
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());

  // Paper shows what is folded too.
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    opened.forEach((part) => (part.open = true));
  });
  addEventListener("afterprint", () => opened.forEach((part) => (part.open = false)));
})();
