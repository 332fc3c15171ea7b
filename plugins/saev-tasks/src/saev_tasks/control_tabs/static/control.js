// Shared by both control tabs: the state with its history, sliders, links, server requests. `element`, `props`, `trigger`,
// `watch` and `server` come from gradio's HTML component; its value is the name of the SAE. A tab defines `draw()` (a new
// picture), `arrive(told)` (the server's answer for the edits), `preview()` (true: computed here) and `unchanged()`.
const one = (what) => element.querySelector(what), every = (what) => [...element.querySelectorAll(what)];
const unpack = (text, kind) => new kind(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
const MIN_STRENGTH = -1, MAX_STRENGTH = 2, TITLE = one(".ctl").classList.contains("one") ? "classification" : "segmentation";
let known = null, shown = null, rows = {}, opening = 0;
const now = { image: -1, mine: null, other: null, edits: {}, where: [] };
let past = [], future = [], last = "{}", added = [], foreign = location.search;

function make(tag, given = {}, ...inside) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (name in made && typeof value !== "string") made[name] = value; else made.setAttribute(name, value);
  }
  made.append(...inside);
  return made;
}
const seen = () => element.isConnected && one(".ctl").offsetParent !== null;
let troubled = "";  // the request that caused it
function trouble(text, by = "") { const wall = one(".ctl-trouble"); wall.textContent = text; wall.hidden = !text; troubled = by; }

let waiting = 0;
const busy = (by) => { waiting += by; one(".ctl").setAttribute("aria-busy", waiting > 0); };
async function ask(what, more = {}) {
  let told;
  busy(1);
  if (what !== "after") trouble("");
  try { told = await server.ask({ what, sae: props.value, image: now.image, ...more }); } catch { told = undefined; }
  setTimeout(busy, 0, -1);  // after the answer is shown
  if (told === undefined || told === null) told = { error: "The viewer does not respond; is saev view still running?" };
  if (told.missing) { missing(told.command); told.error = "missing"; }
  else if (told.error) trouble(told.error, what);
  else if (troubled === what) trouble("");
  return told;
}
function missing(command) {
  one(".ctl-missing").replaceChildren(
    make("p", {}, "There is no probe yet. Train one on the recorded pictures with this command; it takes minutes at most:"),
    make("pre", {}, make("code", {}, command)), make("button", { type: "button", "data-do": "again" }, "Retry"));
  one(".ctl-missing").hidden = false; one(".ctl-all").hidden = true;
  one(".ctl").classList.remove("loading");
}

// The state as a list, as text, and as a link.
const edits = () => Object.entries(now.edits).filter(([, s]) => s).map(([f, s]) => [+f, s]).sort((a, b) => a[0] - b[0]);
const snapshot = () => JSON.stringify({ edits: Object.fromEntries(edits()), where: now.where });
function runs(patches) {
  const parts = [];
  for (const p of patches) { const end = parts[parts.length - 1]; if (end && end[1] === p - 1) end[1] = p; else parts.push([p, p]); }
  return parts.map(([a, b]) => (a === b ? a : `${a}-${b}`)).join("_");
}
function unruns(text) {
  return (text || "").split("_").filter(Boolean).flatMap((part) => {
    const [a, b] = part.split("-").map(Number);
    return b === undefined ? [a] : b - a < 1e5 ? Array.from({ length: Math.max(b - a + 1, 0) }, (_, i) => a + i) : [a, b];
  });
}
function link() {
  const asked = new URLSearchParams({ tab: TITLE, sae: props.value, image: now.image });
  if (now.mine !== null) asked.set("mine", now.mine);
  if (now.other !== null) asked.set("other", now.other);
  const changed = edits().map(([f, s]) => `${f}:${+s.toFixed(3)}`).join(",");
  let text = `?${asked}`;
  if (changed) text += `&edits=${changed}`;
  if (now.where.length) text += `&where=${runs(now.where)}`;
  return text;
}
function linked() {  // the state in the page's address, used once
  const asked = new URLSearchParams(foreign);
  foreign = "";
  if (asked.get("tab") !== TITLE) return null;
  const number = (text) => (text === null || text === "" ? null : isNaN(+text) ? text : +text);
  const given = (asked.get("edits") || "").split(",").filter(Boolean).map((part) => part.split(":").map(number));
  return { image: number(asked.get("image")), mine: number(asked.get("mine")), other: number(asked.get("other")), edits: given, where: unruns(asked.get("where")) };
}
function mark() {
  one(".ctl-link").dataset.copy = link();
  one('[data-do="undo"]').disabled = !past.length;
  one('[data-do="redo"]').disabled = !future.length;
  one('[data-do="reset"]').disabled = snapshot() === '{"edits":{},"where":[]}';
}
function commit() {
  const here = snapshot();
  if (here !== last) { past.push(last); if (past.length > 200) past.shift(); future = []; last = here; }
  mark();
}
function restore(text) {
  last = text;
  Object.assign(now, JSON.parse(text));
  mark();
  if (edits().some(([f]) => !rows[f])) open(now.image); else { sync(); follow(true); }
}
function undo() { if (past.length) { future.push(last); restore(past.pop()); } }
function redo() { if (future.length) { past.push(last); restore(future.pop()); } }
function reset() { now.edits = {}; now.where = []; commit(); sync(); follow(true); }

// One request at a time; of those made meanwhile only the last is sent.
let flying = false, again = false, worked = false, asked = "";  // asked: the state in the last request
async function exact() {
  const want = () => `${now.image} ${snapshot()}`;
  if (want() === asked) { again = false; return; }
  if (flying) { again = true; return; }
  flying = true;
  do {
    again = false;
    const here = asked = want(), image = now.image, list = edits();
    if (!list.length) { unchanged(); asked = ""; continue; }
    const told = await ask("after", { edits: list, where: now.where });
    if (told.error) asked = "";
    else if (image === now.image && edits().length && (!worked || here === want())) arrive(told);
  } while (again);
  flying = false;
}
function follow(final) {
  if (!shown) return;
  if (!edits().length) { unchanged(); again = false; asked = ""; return; }
  worked = preview();
  if (!worked || final) exact();
}

async function start() {
  const told = await ask("start");
  if (told.error) { one(".ctl").classList.remove("loading"); return; }
  one(".ctl-missing").hidden = true; one(".ctl-all").hidden = false;
  known = told;
  one(".ctl-about").textContent = [told.about, told.no_pictures].filter(Boolean).join(" ");
  const among = one(".ctl-among");
  if (among) {
    const any = `any (${told.n_heldout}${told.heldout ? " held out" : ""})`;
    among.replaceChildren(make("option", { value: "-1" }, any), ...told.among.map(([n, name, count]) => make("option", { value: `${n}` }, `${name} (${count})`)));
    among.closest("label").hidden = !told.among.length;
  }
  for (const select of every(".ctl-other, .ctl-mine")) select.replaceChildren(...told.classes.map((name, i) => make("option", { value: `${i}` }, name)));
  one(".ctl-number").max = told.n_images - 1;
  const asked = linked();
  if (asked) {
    const bad = asked.edits.find((pair) => pair.length !== 2 || typeof pair[0] !== "number");
    const reply = bad ? { error: "The edits in this link cannot be parsed; expected a form like edits=12:1.5,40:-1." }
      : await ask("picture", { ...asked, image: asked.image === null ? told.first : asked.image });
    if (!reply.error) {
      now.mine = asked.mine; now.other = asked.other; now.where = asked.where;
      now.edits = Object.fromEntries(asked.edits);
      last = snapshot();
      show(reply);
      return;
    }
    await open(told.first);
    trouble(`This link is invalid: ${reply.error}`);
    return;
  }
  await open(now.image >= 0 && now.image < told.n_images ? now.image : told.first);
}
async function open(image) {
  const turn = ++opening;
  const told = await ask("picture", { image, mine: now.mine, other: now.other, edits: edits(), extra: added });
  if (turn === opening && !told.error) show(told);
  else if (shown) one(".ctl-number").value = now.image;
}
function show(told) {
  shown = told; now.image = told.image; rows = {}; asked = "";
  one(".ctl").classList.remove("loading");
  for (const row of [...told.lists[0], ...told.lists[1], ...told.extra]) learn(row);
  const number = one(".ctl-number");
  if (document.activeElement !== number || !number.value) number.value = told.image;
  fill(".mine", told.lists[0]); fill(".other", told.lists[1]); fill(".extra", told.extra);
  if (one(".ctl-other")) one(".ctl-other").value = told.other;
  if (one(".ctl-mine")) one(".ctl-mine").value = told.mine;
  draw(); mark();
  follow(true);
}
function learn(row) { if (row.effect && typeof row.effect === "string") row.effect = unpack(row.effect, Float32Array); rows[row.feature] = row; }

// Features with their sliders.
function fill(list, given) {
  const place = one(`${list} .rows`);
  place.replaceChildren(...given.map(slider));
  if (!given.length && list !== ".extra") place.append(make("p", { class: "ctl-none" }, "No feature of this SAE supports this class."));
}
function slider(row) {
  const tops = row.top.map((top) => {
    const picture = make("img", { src: top.src, alt: "", loading: "lazy" });
    const [left, above, width, height] = top.box;
    const heat = top.map ? [make("img", { src: top.map, alt: "", loading: "lazy", class: "heat", style: `left:${left}%;top:${above}%;width:${width}%;height:${height}%` })] : [];
    return make("button", { type: "button", class: "top", "data-see": `${top.image}`, style: `--r:${top.ratio}`, title: `Picture ${top.image}: open it in the Image tab`, "aria-label": `picture ${top.image}` }, picture, ...heat);
  });
  const name = make("button", { type: "button", class: "name", "data-open": `${row.feature}`, title: "Open this feature" }, make("b", {}, `${row.feature}`), row.name ? ` ${row.name}` : make("i", {}, " unnamed"));
  const here = row.dead ? "never fires" : row.here > 0 ? `here ${(100 * row.here).toFixed(0)} % of its max` : "silent here";
  const range = make("input", { type: "range", min: `${MIN_STRENGTH}`, max: `${MAX_STRENGTH}`, step: "0.05", "aria-label": `strength of feature ${row.feature} ${row.name}`, disabled: !!row.dead });
  const line = make("div", { class: "ctl-row", "data-row": `${row.feature}` },
    make("div", { class: "tops" }, ...tops), make("div", { class: "line" }, name, make("span", { class: row.here > 0 ? "here" : "here none" }, here)),
    make("div", { class: "slide" }, range, make("output", {}), make("button", { type: "button", class: "back", "data-back": `${row.feature}`, title: "Undo this edit", "aria-label": `undo the edit of feature ${row.feature}` }, "↺")));
  place(line);
  return line;
}
function words(s) { return !s ? "unchanged" : s <= MIN_STRENGTH ? "off" : s < 0 ? `${Math.round(100 * s)} %`.replace("-", "−") : `+${+s.toFixed(2)} × max`; }
function place(line) {
  const s = now.edits[line.dataset.row] || 0, range = line.querySelector("input");
  range.value = s;
  range.style.setProperty("--v", (s - MIN_STRENGTH) / (MAX_STRENGTH - MIN_STRENGTH));
  range.setAttribute("aria-valuetext", words(s));
  line.querySelector("output").textContent = words(s);
  line.classList.toggle("moved", s !== 0);
  line.querySelector(".back").disabled = s === 0;
}
function sync() { every("[data-row]").forEach(place); if (typeof marked === "function") marked(); }
function move(feature, s) {
  now.edits[feature] = Math.abs(s) < 1e-9 ? 0 : s;
  every(`[data-row="${feature}"]`).forEach(place);
}
async function add(given) {
  const told = await ask("find", given);
  if (told.error) return;
  for (const row of told.rows) {
    learn(row);
    if (!added.includes(row.feature)) added.push(row.feature);
    const have = one(`[data-row="${row.feature}"]`);
    if (!have) one(".extra .rows").append(slider(row));
    one(`[data-row="${row.feature}"] input`).focus();
  }
}
async function list(which, label) {
  const told = await ask("features", { label });
  if (told.error) return;
  now[which] = shown[which] = told.label;
  told.rows.forEach(learn);
  fill(`.${which}`, told.rows);
  const kept = edits().map(([f]) => f).filter((f) => !one(`[data-row="${f}"]`) && rows[f]);
  one(".extra .rows").append(...kept.map((f) => slider(rows[f])));
  if (typeof relabel === "function") relabel();
  mark();
}
async function step(by) {
  const told = await ask("step", { by, among: one(".ctl-among") ? +one(".ctl-among").value : -1 });
  if (!told.error) open(told.image);
}

const doing = { undo, redo, reset, next: () => step(1), previous: () => step(-1), random: () => step(0), again: start, figure: () => figure() };
doing.opened = () => {
  const field = document.querySelector("#saev-feature input");
  const feature = field ? +field.value : -1;
  if (feature >= 0) add({ text: `${feature}` }); else trouble("Open a feature in the Features tab first.");
};
element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  const { see, open: feature, back } = button.dataset, what = button.dataset.do;
  if (what) doing[what]();
  else if (see !== undefined) trigger("select", { picture: +see });
  else if (feature !== undefined) trigger("select", { feature: +feature });
  else if (back !== undefined) { move(back, 0); commit(); follow(true); }
});
element.addEventListener("input", (event) => {
  const line = event.target.closest("[data-row]");
  if (line) { move(line.dataset.row, +event.target.value); follow(false); }
});
element.addEventListener("change", (event) => {
  const field = event.target;
  if (field.closest("[data-row]")) { commit(); follow(true); }
  else if (field.matches(".ctl-number")) { if (field.value !== "") open(+field.value); }
  else if (field.matches(".ctl-among")) { if (+field.value >= 0) step(1); }
  else if (field.matches(".ctl-other")) list("other", +field.value);
  else if (field.matches(".ctl-mine")) list("mine", +field.value);
});
element.addEventListener("submit", (event) => {
  event.preventDefault();
  const field = event.target.querySelector("input");
  if (field.value.trim()) add({ text: field.value }); field.value = "";
});
const keys = (event) => {
  if (!element.isConnected) { document.removeEventListener("keydown", keys); return; }
  if (!seen() || !shown || event.altKey) return;
  const writing = event.target.closest("textarea, select, [contenteditable], input:not([type=range])");
  if (writing) return;
  const key = event.key.toLowerCase();
  if (event.ctrlKey || event.metaKey) {
    if (key === "z" || key === "y") { event.preventDefault(); if (key === "y" || event.shiftKey) redo(); else undo(); }
    return;
  }
  const what = { n: "next", p: "previous", r: "random" }[key];
  if (what) { event.preventDefault(); doing[what](); }
};
document.addEventListener("keydown", keys);
let sae = props.value;
watch("value", () => {
  if (props.value === sae) return;
  sae = props.value;
  now.edits = {}; now.where = []; now.mine = now.other = null; past = []; future = []; added = []; last = snapshot(); shown = null;
  start();
});
