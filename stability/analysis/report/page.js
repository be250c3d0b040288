"use strict";
// Draws the figures, and lets the reader hide arms and sizes, sort and filter. No network, no storage.
(() => {
  const specs = JSON.parse(document.getElementById("specs").textContent);
  const options = { actions: { export: true, source: false, compiled: false, editor: false }, renderer: "canvas" };
  const views = new Map();

  const hidden = (key) =>
    [...document.querySelectorAll(`input[data-${key}]:not(:checked)`)].map((box) => box.dataset[key]);

  const terms = () => document.getElementById("filter").value.toLowerCase().split(/\s+/).filter(Boolean);

  function showRows() {
    const arms = new Set(hidden("arm")), scales = new Set(hidden("scale")), words = terms();
    let shown = 0;
    for (const row of document.querySelectorAll("tr[data-arm]")) {
      const isRun = row.closest("#runs") !== null;
      const text = isRun && words.length ? row.textContent.toLowerCase() + " " + row.className : "";
      row.hidden = arms.has(row.dataset.arm) || scales.has(row.dataset.scale) || !words.every((word) => !isRun || text.includes(word));
      if (isRun && !row.hidden) shown += 1;
    }
    document.getElementById("shown").textContent = `${shown} shown`;
  }

  async function showFigures() {
    const values = { hidden_arms: hidden("arm"), hidden_scales: hidden("scale") };
    for (const view of views.values()) {
      for (const [name, value] of Object.entries(values)) view.signal(name, value);
      await view.runAsync();
    }
  }

  function sortBy(header) {
    const table = header.closest("table"), column = header.cellIndex, body = table.tBodies[0];
    const down = header.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    const valueOf = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const compare = (a, b) => {
      const x = valueOf(a), y = valueOf(b);
      if (x === "" || y === "") return (x === "") - (y === ""); // what is not known comes last
      const order = Number.isNaN(+x) || Number.isNaN(+y) ? x.localeCompare(y) : x - y;
      return down ? -order : order;
    };
    body.append(...[...body.rows].sort(compare));
  }

  for (const header of document.querySelectorAll(".sortable th")) header.addEventListener("click", () => sortBy(header));
  document.getElementById("filter").addEventListener("input", showRows);
  for (const box of document.querySelectorAll(".controls input"))
    box.addEventListener("change", () => { showRows(); showFigures(); });

  async function draw(place) {
    try {
      views.set(place.dataset.figure, (await vegaEmbed(place, specs[place.dataset.figure], options)).view);
    } catch (error) {
      place.classList.add("broken");
      place.textContent = `This figure could not be drawn: ${error.message}`;
      console.error(error);
    }
  }

  window.reportViews = views;
  showRows();
  (async () => {
    for (const place of document.querySelectorAll(".chart")) {
      await draw(place);
      await new Promise(requestAnimationFrame); // let the reader scroll while figures are drawn
    }
    document.documentElement.dataset.ready = "true";
  })();
})();
