// The map of all features on a canvas: dragging selects a box, a click opens the nearest feature, arrow keys move between features.
// On touch screens dragging scrolls the page unless "Draw a box by touch" is on; it turns off after one box.
// `element`, `props`, `trigger` and `watch` come from gradio's HTML component; the value is the JSON of `html/overview.py: points`.
const LEFT = 62, RIGHT = 14, TOP = 12, BOTTOM = 46, NEAR = 14;
let data = null, box = null, drag = null, near = -1, touch = false;
const find = (what) => element.querySelector(what);
const canvas = () => find("canvas"), tip = () => find(".tip");
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;

function read() {
  const value = props.value ? JSON.parse(props.value) : null;
  data = value && { ...value, x: new Float32Array(bytes(value.x)), y: new Float32Array(bytes(value.y)), id: new Int32Array(bytes(value.id)) };
  near = -1;
  find(".map").hidden = find(".ranges").hidden = !data;
  find(".empty").hidden = !!data || !props.value && props.value !== "";
  told(value && value.box);
}
// Show an external box, column -> [minimum, maximum], on the map and in the fields.
function told(ranges) {
  const log = (v) => Math.log10(Math.max(v, 1e-30)), f = ranges && ranges.frequency, m = ranges && ranges.mean;
  box = f && m && data ? [log(f[0]), log(f[1]), log(m[0]), log(m[1])] : null;
  const text = (v) => (+v.toPrecision(3)).toString();
  const values = box ? [100 * f[0], 100 * f[1], m[0], m[1]].map(text) : ["", "", "", ""];
  ["x0", "x1", "y0", "y1"].forEach((name, i) => { find(`[name=${name}]`).value = values[i]; });
  let n = 0;
  if (box) for (let i = 0; i < data.x.length; i++) n += inside(i);
  find(".chosen").textContent = box ? (n === 1 ? "1 feature selected" : `${n.toLocaleString("en")} features selected`) : "";
  find("[data-go]").hidden = !n;
  find("[data-clear]").hidden = !box;
  draw();
}
// Tolerance, so that float32 points on the edge of a box count as inside.
const inside = (i) => data.x[i] >= box[0] - 1e-6 && data.x[i] <= box[1] + 1e-6 && data.y[i] >= box[2] - 1e-6 && data.y[i] <= box[3] + 1e-6;
function frame() {
  const c = canvas();
  return { x0: LEFT, x1: c.clientWidth - RIGHT, y0: TOP, y1: c.clientHeight - BOTTOM };
}
const px = (v, f) => f.x0 + ((v - data.fx[0]) / (data.fx[1] - data.fx[0])) * (f.x1 - f.x0);
const py = (v, f) => f.y1 - ((v - data.fy[0]) / (data.fy[1] - data.fy[0])) * (f.y1 - f.y0);
const vx = (p, f) => data.fx[0] + ((p - f.x0) / (f.x1 - f.x0)) * (data.fx[1] - data.fx[0]);
const vy = (p, f) => data.fy[0] + ((f.y1 - p) / (f.y1 - f.y0)) * (data.fy[1] - data.fy[0]);

function draw() {
  const c = canvas();
  if (!c || !data || !c.clientWidth) return;
  const scale = window.devicePixelRatio || 1, f = frame(), style = getComputedStyle(find(".map"));
  c.width = c.clientWidth * scale; c.height = c.clientHeight * scale;
  const g = c.getContext("2d");
  g.scale(scale, scale);
  const ink = style.color, dot = style.getPropertyValue("--dot"), chosen = style.getPropertyValue("--chosen");
  g.font = "12px " + style.fontFamily; g.fillStyle = ink; g.strokeStyle = "rgba(128,128,128,.22)"; g.lineWidth = 1;
  g.textAlign = "center";
  let last = -99;
  for (const [v, text] of data.tx) {
    const x = px(v, f);
    g.beginPath(); g.moveTo(x, f.y0); g.lineTo(x, f.y1); g.stroke();
    if (x - last > g.measureText(text).width + 10) { g.fillText(text, x, f.y1 + 17); last = x; }
  }
  g.textAlign = "right";
  for (const [v, text] of data.ty) { const y = py(v, f); g.beginPath(); g.moveTo(f.x0, y); g.lineTo(f.x1, y); g.stroke(); g.fillText(text, f.x0 - 7, y + 4); }
  g.textAlign = "center";
  g.fillText("fraction of patches on which it fires", (f.x0 + f.x1) / 2, f.y1 + 38);
  g.save(); g.translate(13, (f.y0 + f.y1) / 2); g.rotate(-Math.PI / 2); g.fillText("mean value where it fires", 0, 0); g.restore();
  const many = data.x.length > 4000, r = many ? 1.6 : 2.6;
  for (let i = 0; i < data.x.length; i++) {
    const on = box && inside(i);
    g.fillStyle = on ? chosen : dot; g.globalAlpha = on ? 0.9 : box ? 0.22 : many ? 0.4 : 0.65;
    g.beginPath(); g.arc(px(data.x[i], f), py(data.y[i], f), r, 0, 7); g.fill();
  }
  g.globalAlpha = 1;
  if (box) { const x = px(box[0], f), y = py(box[3], f); g.strokeStyle = chosen; g.lineWidth = 1.5; g.strokeRect(x, y, px(box[1], f) - x, py(box[2], f) - y); }
  if (near >= 0) { g.strokeStyle = ink; g.lineWidth = 2; g.beginPath(); g.arc(px(data.x[near], f), py(data.y[near], f), r + 4, 0, 7); g.stroke(); }
}
function at(event) {
  const r = canvas().getBoundingClientRect();
  return [event.clientX - r.left, event.clientY - r.top];
}
function nearest(x, y) {
  const f = frame();
  let best = -1, least = NEAR * NEAR;
  for (let i = 0; i < data.x.length; i++) {
    const dx = px(data.x[i], f) - x, dy = py(data.y[i], f) - y, d = dx * dx + dy * dy;
    if (d < least) { least = d; best = i; }
  }
  return best;
}
// Target of an arrow key: the nearest feature in that direction, with sideways distance counted twice.
function beside(key) {
  if (near < 0) return 0;
  const f = frame(), x = px(data.x[near], f), y = py(data.y[near], f);
  const [ux, uy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key];
  let best = near, least = Infinity;
  for (let i = 0; i < data.x.length; i++) {
    const dx = px(data.x[i], f) - x, dy = py(data.y[i], f) - y, along = dx * ux + dy * uy;
    const d = along + 2 * Math.abs(dx * uy) + 2 * Math.abs(dy * ux);
    if (i !== near && along > 0.01 && d < least) { least = d; best = i; }
  }
  return best;
}
function point() {
  const t = tip(), f = frame();
  t.hidden = near < 0;
  if (near < 0) { draw(); return; }
  t.textContent = `feature ${data.id[near]}: fires on ${(100 * 10 ** data.x[near]).toPrecision(2)} % of patches, mean value ${(10 ** data.y[near]).toPrecision(3)}`;
  const x = px(data.x[near], f), y = py(data.y[near], f);
  t.style.left = `${Math.max(0, Math.min(x + 14, canvas().clientWidth - t.offsetWidth - 4))}px`;
  t.style.top = `${y + 14 + t.offsetHeight > canvas().clientHeight ? y - 14 - t.offsetHeight : y + 14}px`;
  draw();
}
function dragged(a, b) {
  const f = frame(), clamp = (v, low, high) => Math.min(Math.max(v, low), high);
  const xs = [a[0], b[0]].map((v) => vx(clamp(v, f.x0, f.x1), f)).sort((p, q) => p - q);
  const ys = [a[1], b[1]].map((v) => vy(clamp(v, f.y0, f.y1), f)).sort((p, q) => p - q);
  return [xs[0], xs[1], ys[0], ys[1]];
}
function finger(on) {
  touch = on;
  find("[data-touch]").setAttribute("aria-pressed", on);
  canvas().style.touchAction = on ? "none" : "pan-y";
}
element.addEventListener("pointerdown", (e) => {
  if (e.target !== canvas() || !data || e.button > 0) return;
  drag = at(e);
  if (e.pointerType !== "touch" || touch) e.target.setPointerCapture(e.pointerId);
});
element.addEventListener("pointermove", (e) => {
  if (e.target !== canvas() || !data) return;
  const p = at(e);
  if (drag && (e.pointerType !== "touch" || touch) && Math.hypot(p[0] - drag[0], p[1] - drag[1]) > 4) { box = dragged(drag, p); near = -1; tip().hidden = true; draw(); return; }
  near = nearest(...p);
  point();
});
element.addEventListener("pointerup", (e) => {
  if (!drag || !data) return;
  const p = at(e), start = drag, far = Math.hypot(p[0] - start[0], p[1] - start[1]) > 4;
  drag = null;
  if (far && (e.pointerType !== "touch" || touch)) { finger(false); trigger("input", { box: dragged(start, p) }); }
  else if (!far && (near = nearest(...p)) >= 0) trigger("select", { feature: data.id[near] });
});
element.addEventListener("pointercancel", () => { drag = null; });  // the page scrolls
element.addEventListener("pointerout", (e) => { if (e.target === canvas() && data) { near = -1; point(); } });
element.addEventListener("focusout", (e) => { if (e.target === canvas() && data) { near = -1; point(); } });
element.addEventListener("keydown", (e) => {
  if (e.target !== canvas() || !data || e.ctrlKey || e.metaKey || e.altKey) return;
  if (e.key.startsWith("Arrow")) { e.preventDefault(); near = beside(e.key); point(); }
  if (e.key === "Enter" && near >= 0) trigger("select", { feature: data.id[near] });
});
element.addEventListener("submit", (e) => {
  e.preventDefault();
  const [x0, x1, y0, y1] = ["x0", "x1", "y0", "y1"].map((name) => find(`[name=${name}]`).value.trim().replace(",", "."));
  // An empty field means no limit: all points are within the frame.
  const log = (text, otherwise, unit) => (text === "" ? otherwise : Math.log10(Math.max(parseFloat(text) / unit, 1e-30)));
  const edges = [log(x0, data.fx[0], 100), log(x1, data.fx[1], 100), log(y0, data.fy[0], 1), log(y1, data.fy[1], 1)];
  if (edges.some(Number.isNaN)) { find(".chosen").textContent = "Enter numbers, such as 0.1 and 2."; return; }
  if (edges[0] > edges[1] || edges[2] > edges[3]) { find(".chosen").textContent = "Empty range: the first number must be the smaller one."; return; }
  trigger("input", { box: edges });
});
element.addEventListener("click", (e) => {
  if (e.target.closest("[data-touch]")) finger(!touch);
  if (e.target.closest("[data-go]")) trigger("submit", {});
  if (e.target.closest("[data-clear]")) trigger("clear", {});
});
document.addEventListener("saev-box", (e) => { if (element.isConnected) told(e.detail); });
new ResizeObserver(draw).observe(element);
watch("value", read);
read();
