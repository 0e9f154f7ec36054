"use strict";
// Sorting: a click on a column's name, or Enter and Space on it; blanks stay last in both directions.
for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => {
    const header = button.parentElement;
    const rising = header.getAttribute("aria-sort") !== "ascending";
    for (const other of header.parentElement.children) other.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", rising ? "ascending" : "descending");
    const body = header.closest("table").tBodies[0];
    const value = (row) => row.cells[header.cellIndex].dataset.value;
    const order = (a, b) => {
      if (a === "" || b === "") return (a === "") - (b === "");
      const numbers = a - b;
      return (Number.isNaN(numbers) ? a.localeCompare(b, "en", { numeric: true }) : numbers) * (rising ? 1 : -1);
    };
    body.append(...[...body.rows].sort((a, b) => order(value(a), value(b))));
  });
}
// Scenes: all are there to be read without a script; with it, one at a time.
for (const panels of document.querySelectorAll(".panels")) {
  const show = (id) => {
    for (const panel of panels.children) panel.hidden = panel.id !== id;
    for (const panel of panels.children)
      for (const button of document.querySelectorAll(`[aria-controls="${panel.id}"]`))
        button.setAttribute("aria-expanded", String(panel.id === id));
  };
  show(panels.firstElementChild.id);
  for (const panel of panels.children)
    for (const button of document.querySelectorAll(`[aria-controls="${panel.id}"]`))
      button.addEventListener("click", () => {
        show(panel.id);
        panel.focus({ preventScroll: true });
        panel.scrollIntoView({ block: "nearest" });
      });
}
