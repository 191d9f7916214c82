// Sorting, filtering, a cell's story in a dialog, and what a plot's point says. Without it every page still reads:
// a cell's link then leads to the story on its model's page.
"use strict";

const table = document.querySelector("table.data");
if (table) setUpTable(table);
setUpStories();
setUpPlots();

function setUpTable(table) {
  const tools = document.querySelector(".tools");
  const filter = document.getElementById("filter");
  const status = document.getElementById("status");
  const sort = document.getElementById("sort");
  const descending = document.getElementById("descending");
  const shown = document.getElementById("shown");
  const heads = [...table.querySelectorAll(".heads > th")];
  const bodies = [...table.tBodies];
  const rows = [...table.querySelectorAll("tr.row")];
  const groups = [...table.querySelectorAll("tr.group")];
  const homes = rows.map((row) => row.parentNode);

  const value = (row, column) => row.children[column].dataset.value;

  function order(column, down) {
    const numeric = rows.some((row) => value(row, column) !== "" && !Number.isNaN(Number(value(row, column))));
    const key = (row) => {
      const text = value(row, column);
      if (!numeric) return text.toLowerCase();
      return text === "" ? NaN : Number(text);
    };
    const keys = new Map(rows.map((row) => [row, key(row)]));
    const sign = down ? -1 : 1;
    return [...rows].sort((a, b) => {
      const x = keys.get(a), y = keys.get(b);
      if (!numeric) return sign * x.localeCompare(y);
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);  // what has no number comes last
      return sign * (x - y);
    });
  }

  function arrange() {
    const column = sort.value === "" ? null : Number(sort.value);
    heads.forEach((head, index) => head.setAttribute("aria-sort",
      index !== column ? "none" : descending.checked ? "descending" : "ascending"));
    groups.forEach((group) => { group.hidden = column !== null; });
    if (column === null) rows.forEach((row, index) => homes[index].append(row));
    else bodies[0].append(...order(column, descending.checked));
  }

  function select() {
    const words = filter.value.trim().toLowerCase();
    let count = 0;
    for (const row of rows) {
      const named = row.children[0].textContent.toLowerCase().includes(words);
      const has = status.value === "" || row.dataset.status.split(" ").includes(status.value);
      row.hidden = !(named && has);
      count += row.hidden ? 0 : 1;
    }
    for (const group of groups)
      group.hidden = sort.value !== "" || ![...group.parentNode.querySelectorAll("tr.row")].some((row) => !row.hidden);
    shown.textContent = `${count} of ${rows.length} rows`;
  }

  heads.forEach((head, index) => {
    const button = head.querySelector("button");
    button.disabled = false;
    button.addEventListener("click", () => {
      if (sort.value !== String(index)) [sort.value, descending.checked] = [String(index), false];
      else if (!descending.checked) descending.checked = true;
      else [sort.value, descending.checked] = ["", false];
      arrange();
      select();
    });
  });
  for (const control of [sort, descending]) control.addEventListener("change", () => { arrange(); select(); });
  for (const name of ["input", "search"]) filter.addEventListener(name, select);
  status.addEventListener("change", select);
  tools.addEventListener("submit", (event) => event.preventDefault());
  tools.hidden = false;
  arrange();  // a browser may have kept the controls' state over a reload
  select();
}

function setUpStories() {
  const dialog = document.getElementById("story");
  if (!dialog) return;
  const body = dialog.querySelector(".body");
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-story]");
    if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
      event.preventDefault();
      body.replaceChildren(document.getElementById(link.dataset.story).content.cloneNode(true));
      dialog.setAttribute("aria-label", body.querySelector(".story-title").textContent);
      dialog.showModal();
      dialog.scrollTop = 0;
    } else if (event.target === dialog) dialog.close();
  });
}

function setUpPlots() {
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.setAttribute("role", "tooltip");
  tip.hidden = true;
  document.body.append(tip);
  const show = (point) => {
    tip.textContent = point.dataset.tip;
    tip.hidden = false;
    const place = point.getBoundingClientRect();
    const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
    tip.style.left = `${scrollX + Math.max(8, Math.min(place.right + 8, room))}px`;
    tip.style.top = `${scrollY + place.bottom + 8}px`;
  };
  for (const point of document.querySelectorAll(".plot a[data-tip]")) {
    for (const name of ["pointerenter", "focus"]) point.addEventListener(name, () => show(point));
    for (const name of ["pointerleave", "blur"]) point.addEventListener(name, () => { tip.hidden = true; });
  }
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });
}
