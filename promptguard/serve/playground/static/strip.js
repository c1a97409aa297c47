// The score of each prefix as bars: one slider for the keyboard, a table for whoever wants numbers.

import { count, el, make, score } from "./text.js";

const strip = el("strip");
let shown = null; // {points, threshold, unit, total, onMove}
let here = -1;

export function draw(points, threshold, unit, total, onMove) {
  shown = { points, threshold, unit, total, onMove };
  here = -1;
  const scores = points.map((point) => point.score);
  const low = Math.min(0, ...scores);
  const high = Math.max(low + 1e-9, 1.1 * Math.max(threshold, ...scores));
  const height = (value) => `${(100 * (value - low)) / (high - low)}%`;
  strip.replaceChildren(...points.map((point) => {
    const bar = make("i");
    bar.classList.toggle("flagged", point.score >= threshold);
    bar.classList.toggle("pale", !point.checked);
    const fill = make("b");
    fill.style.height = height(point.score);
    bar.append(fill);
    return bar;
  }));
  const line = el("threshold");
  line.replaceChildren(make("span", `threshold ${threshold.toFixed(2)}`));
  line.style.bottom = height(threshold);
  strip.setAttribute("aria-valuemax", String(points.length));
  el("scores").replaceChildren(...points.map(row));
  describe(points.length - 1);
  here = -1;
}

function row(point) {
  const cells = [
    make("th", count(point.units, shown.unit)),
    make("td", score(point.score)),
    make("td", point.score >= shown.threshold ? "yes" : "no"),
    make("td", point.checked ? "checked" : "not of this budget"),
  ];
  cells[0].scope = "row";
  const line = make("tr");
  line.append(...cells);
  return line;
}

function describe(index) {
  const point = shown.points[index];
  const said = [
    point.units === shown.total ? "All of it" : `The first ${count(point.units, shown.unit)} of ${shown.total}`,
    `score ${score(point.score)}`,
    point.score >= shown.threshold ? "flagged" : "not flagged",
  ];
  if (!point.checked) said.push("not an erasure of this mode and budget");
  el("reading").textContent = said.join(" · ");
  strip.setAttribute("aria-valuenow", String(index + 1));
  strip.setAttribute("aria-valuetext", said.join(", "));
}

function move(index) {
  const next = Math.max(0, Math.min(shown.points.length - 1, index));
  if (next === here) return;
  strip.children[here]?.classList.remove("here");
  here = next;
  strip.children[here].classList.add("here");
  describe(here);
  shown.onMove(shown.points[here].end);
}

function leave() {
  if (!shown?.points.length) return;
  strip.children[here]?.classList.remove("here");
  here = -1;
  describe(shown.points.length - 1);
  shown.onMove(null);
}

strip.addEventListener("pointermove", (event) => {
  if (!shown?.points.length) return;
  const box = strip.getBoundingClientRect();
  move(Math.floor((shown.points.length * (event.clientX - box.left)) / box.width));
});
strip.addEventListener("pointerleave", () => document.activeElement !== strip && leave());
strip.addEventListener("focus", () => shown?.points.length && move(here < 0 ? shown.points.length - 1 : here));
strip.addEventListener("blur", leave);
strip.addEventListener("keydown", (event) => {
  if (!shown?.points.length) return;
  const last = shown.points.length - 1;
  const at = here < 0 ? last : here;
  const to = {
    ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1,
    PageDown: at - 10, PageUp: at + 10, Home: 0, End: last,
  }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  move(to);
});
