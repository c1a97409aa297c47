// Texts on the page: ranges count code points, as the server does, never UTF-16 units.

export const el = (id) => document.getElementById(id);

export function make(tag, text = "", className = "") {
  const node = document.createElement(tag);
  node.textContent = text;
  if (className) node.className = className;
  return node;
}

export const lengthOf = (text) => Array.from(text).length;

// Write a text into a node with layers laid over it: [{tag, className, ranges: [[start, end], ...]}, ...].
// Layers may overlap; a later one lies inside an earlier one.
export function write(node, text, layers) {
  const points = Array.from(text);
  const cuts = new Set([0, points.length]);
  for (const layer of layers) for (const range of layer.ranges) for (const cut of range) cuts.add(cut);
  const sorted = [...cuts].sort((a, b) => a - b);
  node.replaceChildren();
  for (let i = 0; i + 1 < sorted.length; i += 1) {
    const [start, end] = [sorted[i], sorted[i + 1]];
    const over = layers.filter((layer) => layer.ranges.some(([a, b]) => a <= start && end <= b));
    let piece = document.createTextNode(points.slice(start, end).join(""));
    for (const layer of over.reverse()) {
      const wrapper = make(layer.tag, "", layer.className ?? "");
      wrapper.append(piece);
      piece = wrapper;
    }
    node.append(piece);
  }
}

export const number = (value) => value.toLocaleString("en");
export const score = (value) => value.toFixed(3);
export const count = (n, unit) => `${number(n)} ${names[unit]}${n === 1 ? "" : "s"}`;
export const names = { char: "character", word: "word", token: "token" };

// Ask the server; an error comes back as an Error whose message is for people.
export async function ask(name, body, signal) {
  let response;
  try {
    response = await fetch(`playground/${name}`, {
      method: body === undefined ? "GET" : "POST",
      headers: body === undefined ? {} : { "content-type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached.");
  }
  const found = await response.json().catch(() => null);
  if (response.ok && found !== null) return found;
  if (found?.error?.message) throw new Error(found.error.message);
  if (response.status === 429 || response.status === 503) throw new Error("The server is busy. Try again in a moment.");
  throw new Error(`The server could not answer (status ${response.status}).`);
}

// Only the last of several questions counts: asking again drops the one before.
export function latest() {
  let controller = new AbortController();
  return (name, body) => {
    controller.abort();
    controller = new AbortController();
    return ask(name, body, controller.signal);
  };
}

export function later(milliseconds, work) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(work, milliseconds);
  };
}
