// An interactive picture: hover over a patch to see which features fire there, click to pin it; select a feature to see
// its heat map. `element`, `props`, `trigger` and `watch` come from gradio's HTML component; the value is the JSON of `tabs/image.py`.
let data = null, patch = -1, kept = -1, feature = -1;
const find = (what) => element.querySelector(what);
const unpack = (text, kind) => new kind(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);

function read() {
  const given = props.value ? JSON.parse(props.value) : null;
  if (given && given.error) { trouble(given.error); busy(""); return; }
  data = given;
  patch = kept = -1;
  find(".look").classList.toggle("none", !data);
  busy("");
  if (!data) { find(".caption").textContent = "Loading…"; return; }
  data.offsets = unpack(data.offsets, Int32Array); data.feature = unpack(data.feature, Int32Array);
  data.value = unpack(data.value, Float32Array); data.upper = unpack(data.upper, Float32Array);
  data.colours = unpack(data.colours, Uint8Array);
  data.place = Object.fromEntries([...unpack(data.known, Int32Array)].map((f, i) => [f, i]));
  data.share = data.value.map((v, i) => v / Math.max(data.upper[data.place[data.feature[i]]], 1e-12));
  if (!(feature in data.place)) feature = -1;
  const frame = find(".seen"), grid = find(".grid");
  frame.style.aspectRatio = `${data.size[0]}/${data.size[1]}`;
  frame.style.width = `calc(72vh * ${data.size[0] / data.size[1]})`;
  find("img").src = data.src;
  find("img").alt = find(".caption").textContent = data.caption + (Math.min(data.box[2], data.box[3]) < 99 ? " · the pale part is outside the model's input" : "");
  for (const layer of [grid, find("canvas")]) ["left", "top", "width", "height"].forEach((side, i) => { layer.style[side] = `${data.box[i]}%`; });
  grid.style.gridTemplate = `repeat(${data.rows}, 1fr) / repeat(${data.cols}, 1fr)`;
  grid.replaceChildren(...Array.from({ length: data.rows * data.cols }, (_, i) => {
    const cell = document.createElement("button");
    cell.dataset.patch = i;
    cell.tabIndex = i === 0 ? 0 : -1;
    cell.setAttribute("aria-label", `patch row ${Math.floor(i / data.cols) + 1}, column ${(i % data.cols) + 1}`);
    return cell;
  }));
  heat(); list();
}
function heat() {
  const canvas = find("canvas"), g = canvas.getContext("2d");
  canvas.width = data.cols; canvas.height = data.rows;
  const pixels = g.createImageData(data.cols, data.rows);
  if (feature >= 0) {
    for (let i = 0; i < data.rows * data.cols; i++) for (let j = data.offsets[i]; j < data.offsets[i + 1]; j++) if (data.feature[j] === feature) {
      const s = Math.min(data.share[j], 1), c = Math.round((0.25 + 0.75 * s) * 255) * 3;
      pixels.data.set([data.colours[c], data.colours[c + 1], data.colours[c + 2], 255 * (0.08 + 0.92 * s)], 4 * i);
    }
  }
  g.putImageData(pixels, 0, 0);
}
function entries() {
  const one = data.rows * data.cols === 1 ? 0 : patch;
  if (one >= 0) {
    const rows = [];
    for (let j = data.offsets[one]; j < data.offsets[one + 1]; j++) rows.push([data.feature[j], data.value[j], data.share[j]]);
    return rows.sort((a, b) => b[2] - a[2]);
  }
  const best = new Map();
  data.feature.forEach((f, j) => { if (!best.has(f) || data.share[j] > best.get(f)[2]) best.set(f, [f, data.value[j], data.share[j]]); });
  return [...best.values()].sort((a, b) => b[2] - a[2]).slice(0, 24);
}
function list() {
  const rows = entries();
  const whole = data.rows * data.cols === 1;
  find(".what").textContent = (data.about ? `${data.about} ` : "") + (whole ? `${rows.length} features fire on this picture.` : patch >= 0
    ? `Patch in row ${Math.floor(patch / data.cols) + 1}, column ${(patch % data.cols) + 1}: ${rows.length} features fire here${kept >= 0 ? " (pinned; click it again to unpin)" : ""}`
    : rows.length ? "The picture's strongest features. Hover over a patch (or click to pin it) to see which fire there; select a feature to see where it fires."
      : "No feature fires on this picture.");
  find(".list").replaceChildren(...rows.map(([f, value, share]) => {
    const row = document.createElement("button");
    row.dataset.feature = f;
    row.className = f === feature ? "on" : "";
    row.setAttribute("aria-pressed", f === feature);
    row.title = `value ${value.toPrecision(3)}, ${(100 * share).toFixed(0)} % of its usual maximum`;
    const name = document.createElement("b"), bar = document.createElement("i"), number = document.createElement("span");
    name.textContent = data.names[f] ? `${f} · ${data.names[f]}` : f;
    bar.style.width = `${Math.min(100, 100 * share)}%`;
    number.textContent = value.toPrecision(3);
    row.append(bar, name, number);
    return row;
  }));
  element.querySelectorAll(".grid button").forEach((cell) => cell.classList.toggle("on", +cell.dataset.patch === patch));
}
element.addEventListener("pointerover", (e) => {
  const cell = e.target.closest("[data-patch]");
  if (cell && kept < 0 && data && e.pointerType === "mouse") { patch = +cell.dataset.patch; list(); }
});
element.addEventListener("pointerout", (e) => {
  if (data && kept < 0 && e.target.closest(".grid") && !(e.relatedTarget && e.relatedTarget.closest && e.relatedTarget.closest(".grid"))) { patch = -1; list(); }
});
element.addEventListener("click", (e) => {
  if (!data) return;
  const cell = e.target.closest("[data-patch]"), row = e.target.closest("[data-feature]");
  if (cell) { const at = +cell.dataset.patch; kept = kept === at ? -1 : at; patch = kept; list(); }
  if (row) {
    const at = +row.dataset.feature;
    feature = at === feature ? -1 : at;  // again: hide its heat map
    heat(); list();
    const again = element.querySelector(`[data-feature="${at}"]`);
    if (again) again.focus({ preventScroll: true });
    if (feature >= 0) trigger("select", { feature });
  }
});
element.addEventListener("keydown", (e) => {
  const cell = e.target.closest("[data-patch]");
  const by = cell && { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -data.cols, ArrowDown: data.cols }[e.key];
  const next = by && element.querySelector(`[data-patch="${+cell.dataset.patch + by}"]`);
  if (next) { e.preventDefault(); next.focus(); if (kept < 0) { patch = +next.dataset.patch; list(); } }
});
// Uploads go only to this viewer; rejections are shown here.
function busy(text) { find(".where").textContent = text || "or drop or paste it here"; }
function trouble(text) { find(".trouble").textContent = text; find(".trouble").hidden = !text; }
async function bring(file) {
  if (!file) return;
  trouble("");
  if (file.size > 50e6) { trouble(`${file.name} is larger than 50 MB; scale it down first.`); return; }
  busy("Analysing your picture… the first one takes longer because the model is loading.");
  try {
    const sent = await fetch("/saev/upload", { method: "POST", body: file, headers: { "X-Name": encodeURIComponent(file.name), "Content-Type": "application/octet-stream" } });
    const told = await sent.json();
    if (told.error) { trouble(told.error); busy(""); } else trigger("upload", told);
  } catch (error) { trouble(`Upload failed (${error.message}); is the viewer still running?`); busy(""); }
}
find("input[type=file]").addEventListener("change", (e) => { bring(e.target.files[0]); e.target.value = ""; });
for (const [name, on] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
  element.addEventListener(name, (e) => {
    e.preventDefault();
    find(".look").classList.toggle("over", on);
    if (name === "drop") bring(e.dataTransfer.files[0]);
  });
}
document.addEventListener("paste", (e) => {
  if (!element.isConnected || !find(".bring").offsetParent || e.target.closest("input, textarea, [contenteditable]")) return;
  const file = [...e.clipboardData.files][0];
  if (file) { e.preventDefault(); bring(file); }
});
const opacity = find(".heat input");
opacity.value = 100 * (parseFloat(getComputedStyle(document.body).getPropertyValue("--heat")) || 0.75);
opacity.addEventListener("input", () => document.body.style.setProperty("--heat", opacity.value / 100));
watch("value", read);
read();
if (!data) trigger("load", {});
