// The playground: the form, the cost while one types, and the verdict. The other modules draw the strip and the attack.

import * as attack from "./attack.js";
import * as strip from "./strip.js";
import { ask, count, el, latest, later, lengthOf, make, names, number, score, write } from "./text.js";

const BUDGETS = { wrap: 20, suffix: 20, insertion: 10, infusion: 2 };
const askCost = latest();
const askCheck = latest();
const askPrefixes = latest();
let menu = null;
let isBudgetChosen = false;

const offer = () => menu.filters.find((filter) => filter.name === el("filter").value);

function request() {
  const budget = el("unlimited").checked ? "unlimited" : Number(el("budget").value);
  const choice = { filter: el("filter").value, mode: el("mode").value, budget, unit: el("unit").value };
  return { text: el("prompt").value, choice };
}

function fault() {
  const isGood = el("unlimited").checked || (el("budget").value !== "" && el("budget").validity.valid);
  return isGood ? "" : "The budget is a whole number from 0 to 10,000.";
}

function announce(text) {
  el("status").textContent = "";
  requestAnimationFrame(() => { el("status").textContent = text; });
}

// The cost, while one types

async function showCost() {
  const { text } = request();
  const cost = el("cost");
  el("length").textContent = `${number(lengthOf(text))} of ${number(menu.max_chars)} characters`;
  cost.classList.remove("over");
  if (!text.trim()) {
    cost.textContent = "";
    return;
  }
  try {
    if (fault()) throw new Error(fault());
    const found = await askCost("cost", request());
    const more = found.more ? "more than " : "";
    const price = `${more}${number(found.checks)} ${found.checks === 1 ? "check" : "checks"}, ${more}${number(found.characters)} characters to read`;
    const how = found.one_pass ? ", in one pass over each start" : "";
    cost.textContent = found.refusal || `${count(found.units, el("unit").value)}: ${price}${found.checks > 1 ? how : ""}.`;
    cost.classList.toggle("over", Boolean(found.refusal));
  } catch (error) {
    if (error.name === "AbortError") return;
    cost.textContent = error.message;
    cost.classList.add("over");
  }
}

const showCostSoon = later(150, showCost);

// What may be chosen

function fill(select, values, label) {
  const kept = select.value;
  select.replaceChildren(...values.map((value) => new Option(label(value), value)));
  if (values.includes(kept)) select.value = kept;
}

function suggest({ isNewMode = false } = {}) {
  fill(el("unit"), ["word", "char", "token"].filter((unit) => offer().units.includes(unit)), (unit) => `${names[unit]}s`);
  if (!isBudgetChosen) {
    const { mode, unit } = request().choice;
    el("unlimited").checked = offer().one_pass.some(([m, u]) => m === mode && u === unit);
    el("budget").value = String(BUDGETS[mode]);
  }
  changed({ isNewMode });
}

function changed({ isNewMode = false } = {}) {
  el("budget").disabled = el("unlimited").checked;
  attack.follow({ isNewMode });
  showCostSoon();
}

// The verdict

async function check() {
  const asked = request();
  el("error").textContent = "";
  el("result").setAttribute("aria-busy", "true");
  try {
    if (fault()) throw new Error(fault());
    const found = await askCheck("check", asked);
    showReport(found, asked);
    el("result").setAttribute("aria-busy", "false");
    showStrip(await askPrefixes("prefixes", { ...asked, start: found.start }), found, asked);
  } catch (error) {
    if (error.name === "AbortError") return;
    if (el("result").getAttribute("aria-busy") === "true") refuse();
    el("error").textContent = asked.text.trim() ? error.message : "Type a prompt first.";
    if (!asked.text.trim()) el("prompt").focus();
  }
}

function refuse() {
  el("found").hidden = true;
  el("nothing").hidden = false;
  el("result").setAttribute("aria-busy", "false");
}

function showReport(found, { text, choice }) {
  const label = found.label === "harmful" ? "Harmful" : "Safe";
  el("verdict").textContent = label;
  el("verdict").className = found.label;
  el("badge").textContent = found.certified ? "certified" : "not certified";
  el("badge").className = `badge ${found.certified ? "good" : ""}`;
  el("meaning").textContent = found.meaning;
  const spent = found.spent === null ? "" : witness(found, choice.unit);
  el("witness").textContent = spent;
  write(el("text"), text, [{ tag: "del", ranges: found.erased }]);
  el("facts").replaceChildren(...[
    ["Score", score(found.score)],
    ["Threshold", found.threshold.toFixed(2)],
    ["Filter alone", score(found.plain)],
    ["Checks", number(found.checks)],
    ["Calls", number(found.calls)],
    ["Time", `${found.milliseconds.toFixed(found.milliseconds < 10 ? 1 : 0)} ms`],
  ].map(([name, value]) => {
    const pair = make("div");
    pair.append(make("dt", name), make("dd", value));
    return pair;
  }));
  el("assumes-part").hidden = !found.certified;
  el("assumes").replaceChildren(...found.assumes.map((line) => make("li", line)));
  el("digest").textContent = found.filter;
  el("strip-part").hidden = true;
  el("nothing").hidden = true;
  el("found").hidden = false;
  announce(`${label}, ${el("badge").textContent}. ${found.meaning} ${spent}`);
}

function witness(found, unit) {
  if (found.spent === 0) return "is flagged as it stands";
  if (!found.erased.length) return `is flagged with ${count(found.spent, unit)} erased; the bound does not say which`;
  return `is flagged with ${count(found.spent, unit)} erased`;
}

function showStrip(found, report, { text, choice }) {
  if (!found.points.length) return;
  const erased = { tag: "del", ranges: report.erased };
  const total = found.points[found.points.length - 1].units;
  el("strip-part").hidden = false;
  el("strip-from").textContent = report.start ? "of what follows the erased beginning" : "";
  strip.draw(found.points, found.threshold, choice.unit, total, (end) => {
    const reading = end === null ? [] : [
      { tag: "span", className: "prefix", ranges: [[report.start, end]] },
      { tag: "span", className: "rest", ranges: [[0, report.start], [end, lengthOf(text)]] },
    ];
    write(el("text"), text, end === null ? [erased] : reading);
  });
}

// The page

function flip() {
  const root = document.documentElement;
  const isDark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = isDark ? "light" : "dark";
  el("theme").setAttribute("aria-pressed", String(!isDark));
}

async function start() {
  el("theme").setAttribute("aria-pressed", String(matchMedia("(prefers-color-scheme: dark)").matches));
  el("theme").addEventListener("click", flip);
  try {
    menu = await ask("menu");
  } catch (error) {
    el("error").textContent = error.message;
    return;
  }
  fill(el("filter"), menu.filters.map((filter) => filter.name), (name) => name);
  // A model first, if there is one that is cheap to guard: it is what attacks fool.
  const first = menu.filters.find((filter) => filter.units.includes("token") && filter.one_pass.length > 0);
  if (first) el("filter").value = first.name;
  attack.start({ request, fault, announce, maxSize: menu.max_size });
  el("form").addEventListener("submit", (event) => {
    event.preventDefault();
    check();
  });
  el("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) check();
  });
  el("prompt").addEventListener("input", showCostSoon);
  for (const chip of el("examples").children) {
    chip.addEventListener("click", () => {
      el("prompt").value = chip.textContent;
      showCost();
      check();
    });
  }
  el("filter").addEventListener("input", () => suggest());
  el("mode").addEventListener("input", () => { isBudgetChosen = false; suggest({ isNewMode: true }); });
  el("unit").addEventListener("input", () => suggest());
  for (const id of ["budget", "unlimited"]) {
    el(id).addEventListener("input", () => { isBudgetChosen = true; changed(); });
  }
  suggest({ isNewMode: true });
  showCost();
}

start();
