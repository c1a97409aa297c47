// The attack panel: what is added, how much of it, and who is fooled.

import { count, el, latest, later, lengthOf, score, write } from "./text.js";

const HOW = { wrap: "wrap", suffix: "append", insertion: "insert", infusion: "infuse" };
const SOURCE = { wrap: "role-play", suffix: "words", insertion: "words", infusion: "words" };
const UNLIMITED = { char: 200, word: 80, token: 100 }; // how far the slider goes where nothing is beyond the budget
const attack = latest();
let seed = 0;
let page = null; // {request, fault, announce, maxSize}
let wasShown = false;

export function start(given) {
  page = given;
  el("attack").addEventListener("submit", (event) => {
    event.preventDefault();
    seed = Math.floor(Math.random() * 2 ** 32);
    strike();
  });
  const again = later(160, () => wasShown && strike());
  for (const id of ["how", "source", "size", "own"]) {
    el(id).addEventListener("input", () => {
      lay();
      again();
    });
  }
}

// Follow the guard: its mode suggests the attack, its budget the length of the slider.
export function follow({ isNewMode }) {
  const { choice } = page.request();
  if (isNewMode) {
    el("how").value = HOW[choice.mode];
    el("source").value = SOURCE[choice.mode];
  }
  const { unit } = choice;
  const budget = page.fault() ? 0 : choice.budget;
  const size = el("size");
  const most = budget === "unlimited" ? UNLIMITED[unit] : Math.max(2 * budget, 8);
  const share = Number(size.value) / Number(size.max);
  if (Number(size.max) !== Math.min(most, page.maxSize)) {
    size.max = String(Math.min(most, page.maxSize));
    size.value = String(Math.round(share * Number(size.max)));
  }
  el("outcome").hidden = true;
  wasShown = false;
  lay();
}

function lay() {
  const { budget, unit } = page.request().choice;
  const size = Number(el("size").value);
  const most = Number(el("size").max);
  const isOwn = el("source").value === "own";
  el("size-part").hidden = isOwn;
  el("own-part").hidden = !isOwn;
  const within = budget === "unlimited" ? most : Math.min(budget, most);
  el("within").style.flexGrow = String(within);
  el("within").hidden = within === 0;
  el("beyond").style.flexGrow = String(most - within);
  el("beyond").hidden = within === most;
  const where = budget === "unlimited" ? "within any budget" : size <= budget ? `within ${budget}` : `beyond ${budget}`;
  el("amount").textContent = `${count(size, unit)}, ${where}`;
  el("size").setAttribute("aria-valuetext", el("amount").textContent);
}

async function strike() {
  const isOwn = el("source").value === "own";
  const asked = { how: el("how").value, source: el("source").value, size: Number(el("size").value), seed };
  if (isOwn) asked.own = el("own").value;
  const request = page.request();
  el("outcome").setAttribute("aria-busy", "true");
  el("attack-error").textContent = "";
  try {
    if (page.fault()) throw new Error(page.fault());
    show(await attack("attack", { ...request, attack: asked }), request.choice);
  } catch (error) {
    if (error.name === "AbortError") return;
    el("outcome").hidden = true;
    el("attack-error").textContent = request.text.trim() ? error.message : "Type a prompt first.";
  }
  el("outcome").removeAttribute("aria-busy");
}

function show(found, choice) {
  const { before, after } = found;
  const wasFlagged = before.label === "harmful";
  const holds = after === null || after.label === "harmful";
  const alone = found.plain >= before.threshold;
  const title = !wasFlagged ? "Nothing to hide" : holds ? "The guard holds" : "The guard is fooled";
  el("outcome-title").textContent = title;
  el("outcome-title").className = !wasFlagged ? "" : holds ? "safe" : "harmful";
  el("inside").textContent = !before.certified ? "not certified" : found.inside ? "inside the certificate" : "outside the certificate";
  el("inside").className = `badge ${found.inside ? "good" : ""}`;
  el("outcome-meaning").textContent = [found.meaning, found.refusal].filter(Boolean).join(" ");
  const high = Math.max(1, before.plain, before.score, found.plain, after?.score ?? 0, before.threshold);
  const aloneSaid = before.plain < before.threshold ? "did not flag it before" : alone ? "still flags it" : "is fooled";
  lane(el("alone"), before.plain, found.plain, before.threshold, high, aloneSaid, !alone && before.plain >= before.threshold);
  const guardSaid = after === null ? "refuses it" : !wasFlagged ? `says ${after.label}` : holds ? "holds" : "is fooled";
  lane(el("guarded"), before.score, after?.score ?? null, before.threshold, high, guardSaid, wasFlagged && !holds);
  write(el("attacked"), found.text, [
    { tag: "ins", ranges: found.added },
    { tag: "del", ranges: after?.erased ?? [] },
  ]);
  el("outcome").hidden = false;
  wasShown = true;
  const added = found.cost === null ? `${lengthOf(found.text)} characters now` : count(found.cost, choice.unit);
  page.announce(`${title}. ${el("inside").textContent}, ${added}. The filter alone ${aloneSaid}. With the guard it ${guardSaid}.`);
}

function lane(node, was, now, threshold, high, said, isFooled) {
  const at = (value) => `${(100 * Math.max(0, value)) / high}%`;
  node.classList.toggle("fooled", isFooled);
  const [line, path, before, after] = ["line", "path", "was", "now"].map((name) => node.querySelector(`.${name}`));
  line.style.left = at(threshold);
  before.style.left = at(was);
  after.hidden = path.hidden = now === null;
  if (now !== null) {
    after.style.left = at(now);
    path.style.left = at(Math.min(was, now));
    path.style.width = `calc(${at(Math.max(was, now))} - ${at(Math.min(was, now))})`;
  }
  const strong = document.createElement("strong");
  strong.textContent = now === null ? "refused" : score(now);
  node.querySelector(".numbers").replaceChildren(`${score(was)} → `, strong, ` (threshold ${threshold.toFixed(2)})`);
  node.querySelector(".badge").textContent = said;
  node.querySelector(".badge").className = `badge ${isFooled ? "bad" : "good"}`;
}
