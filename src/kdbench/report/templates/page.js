"use strict";
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  table.querySelectorAll("th button").forEach((button, column) => button.addEventListener("click", () => {
    const head = button.parentElement;
    const direction = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
    const numeric = head.classList.contains("number");
    const value = row => row.cells[column].dataset.sort;
    const rows = Array.from(body.rows).sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      return direction * (numeric && !isNaN(x) && !isNaN(y) ? x - y : x.localeCompare(y, "en", { numeric: true }));
    });
    body.append(...rows);
  }));
}
for (const field of document.querySelectorAll("input[data-filter]")) {
  const table = document.getElementById(field.dataset.filter);
  const count = document.querySelector(`[data-count="${field.dataset.filter}"]`);
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = Array.from(table.tBodies[0].rows);
    for (const row of rows) {
      const text = Array.from(row.cells, cell => cell.textContent.toLowerCase()).join(" ");
      row.hidden = !words.every(word => text.includes(word));
    }
    const shown = rows.filter(row => !row.hidden).length;
    count.textContent = `${shown === rows.length ? "" : `${shown} of `}${rows.length} row${rows.length === 1 ? "" : "s"}`;
  });
}
for (const button of document.querySelectorAll("button[data-all]")) {
  button.addEventListener("click", () => {
    const whole = document.getElementById(button.dataset.all).classList.toggle("whole");
    button.setAttribute("aria-pressed", whole);
  });
}

// A link to a row, or to a folded table, unfolds the table and marks the row.
function goTo(hash) {
  const target = document.getElementById(decodeURIComponent(hash.slice(1)));
  document.querySelectorAll("tr.hit").forEach(row => row.classList.remove("hit"));
  if (!target) return;
  const folded = target.closest("details");
  if (folded) folded.open = true;
  if (target.tagName === "TR") {
    target.hidden = false;
    target.classList.add("hit");
  }
  target.scrollIntoView({ block: target.tagName === "TR" ? "center" : "start" });
}
addEventListener("hashchange", () => goTo(location.hash));
// A second click on the same link changes no hash.
document.addEventListener("click", event => {
  const link = event.target.closest('a[href^="#"]');
  if (link && link.getAttribute("href") === location.hash) goTo(location.hash);
});
if (location.hash) goTo(location.hash);

const tip = document.getElementById("tip");
let shownMark = null, title = null;
function show(mark) {
  hide();
  [shownMark, title] = [mark, mark.querySelector("title")];
  title.remove(); // else the browser shows it as well
  tip.textContent = mark.getAttribute("aria-label");
  tip.hidden = false;
  place();
}
function place() {
  if (!shownMark) return;
  const at = shownMark.getBoundingClientRect(), [width, height] = [tip.offsetWidth, tip.offsetHeight];
  const left = Math.max(8, Math.min((at.left + at.right - width) / 2, document.documentElement.clientWidth - width - 8));
  tip.style.left = `${left}px`;
  tip.style.top = `${at.top - height - 8 > 0 ? at.top - height - 8 : at.bottom + 8}px`;
}
function hide() {
  if (shownMark) shownMark.prepend(title);
  shownMark = null;
  tip.hidden = true;
}
for (const svg of document.querySelectorAll("figure svg")) {
  // One stop of the Tab key for each figure; the arrow keys move between its points.
  const marks = Array.from(svg.querySelectorAll("a.mark"));
  marks.forEach((mark, place) => {
    mark.setAttribute("tabindex", place ? -1 : 0);
    mark.addEventListener("pointerenter", () => show(mark));
    mark.addEventListener("pointerleave", hide);
    mark.addEventListener("focus", () => show(mark));
    mark.addEventListener("blur", hide);
    mark.addEventListener("keydown", event => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (event.key === "Escape") hide();
      if (!step) return;
      event.preventDefault();
      const next = marks[(place + step + marks.length) % marks.length];
      mark.setAttribute("tabindex", -1);
      next.setAttribute("tabindex", 0);
      next.focus();
    });
  });
}
addEventListener("scroll", place, { passive: true }); // focus may scroll the page
let unfolded = [];
addEventListener("beforeprint", () => {
  unfolded = Array.from(document.querySelectorAll("details:not([open])"));
  unfolded.forEach(details => { details.open = true; });
});
addEventListener("afterprint", () => unfolded.forEach(details => { details.open = false; }));
