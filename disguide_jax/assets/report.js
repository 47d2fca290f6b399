"use strict";
// A heading sorts its table: upwards first, then downwards; what is missing stays last.
const isMissing = (cell) => cell.dataset.value === "";
const compare = (a, b) => {
  const [x, y] = [a.dataset.value, b.dataset.value];
  if (x !== undefined && y !== undefined) return Number(x) - Number(y);
  return a.textContent.localeCompare(b.textContent, "en", { numeric: true });
};
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows].sort((first, second) => {
        const [a, b] = [first.cells[column], second.cells[column]];
        if (isMissing(a) || isMissing(b)) return isMissing(a) - isMissing(b);
        return down ? compare(b, a) : compare(a, b);
      });
      table.tBodies[0].append(...rows);
    });
  });
}
