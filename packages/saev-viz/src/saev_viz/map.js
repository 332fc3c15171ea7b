// The map of all features, drawn on a canvas: drag selects a box, a click opens the nearest feature.
// `element`, `props`, `trigger` and `watch` come from gradio's HTML component; the value is the JSON of `tabs/overview.py: points`.
const LEFT = 62, RIGHT = 14, TOP = 12, BOTTOM = 46, NEAR = 14;
let data = null, box = null, drag = null, near = -1;
const canvas = () => element.querySelector("canvas");
const tip = () => element.querySelector(".tip");

function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return new Float32Array(bytes.buffer);
}
function read() {
  const value = props.value ? JSON.parse(props.value) : null;
  if (!value) { data = null; return; }
  data = { ...value, x: unpack(value.x), y: unpack(value.y), id: new Int32Array(Uint8Array.from(atob(value.id), (c) => c.charCodeAt(0)).buffer) };
  box = value.box || null;
}
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
  const scale = window.devicePixelRatio || 1, f = frame(), style = getComputedStyle(element);
  c.width = c.clientWidth * scale; c.height = c.clientHeight * scale;
  const g = c.getContext("2d");
  g.scale(scale, scale);
  const ink = style.getPropertyValue("--body-text-color") || "#222", faint = "rgba(128,128,128,.22)";
  g.font = "12px " + style.fontFamily; g.fillStyle = ink; g.strokeStyle = faint; g.lineWidth = 1;
  g.textAlign = "center";
  for (const [v, text] of data.tx) { const x = px(v, f); g.beginPath(); g.moveTo(x, f.y0); g.lineTo(x, f.y1); g.stroke(); g.fillText(text, x, f.y1 + 17); }
  g.textAlign = "right";
  for (const [v, text] of data.ty) { const y = py(v, f); g.beginPath(); g.moveTo(f.x0, y); g.lineTo(f.x1, y); g.stroke(); g.fillText(text, f.x0 - 7, y + 4); }
  g.textAlign = "center";
  g.fillText("share of patches that fire the feature", (f.x0 + f.x1) / 2, f.y1 + 38);
  g.save(); g.translate(13, (f.y0 + f.y1) / 2); g.rotate(-Math.PI / 2); g.fillText("mean value where it fires", 0, 0); g.restore();
  const many = data.x.length > 4000, r = many ? 1.6 : 2.4;
  for (let i = 0; i < data.x.length; i++) {
    const inside = box && data.x[i] >= box[0] && data.x[i] <= box[1] && data.y[i] >= box[2] && data.y[i] <= box[3];
    g.fillStyle = inside ? "rgba(213,94,0,.8)" : box ? "rgba(0,114,178,.18)" : many ? "rgba(0,114,178,.35)" : "rgba(0,114,178,.55)";
    g.beginPath(); g.arc(px(data.x[i], f), py(data.y[i], f), r, 0, 7); g.fill();
  }
  if (box) { const x = px(box[0], f), y = py(box[3], f); g.strokeStyle = "#d55e00"; g.lineWidth = 1.5; g.strokeRect(x, y, px(box[1], f) - x, py(box[2], f) - y); }
  if (near >= 0) { g.strokeStyle = ink; g.lineWidth = 1.5; g.beginPath(); g.arc(px(data.x[near], f), py(data.y[near], f), r + 3, 0, 7); g.stroke(); }
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
function dragged(a, b) {
  const f = frame(), clamp = (v, low, high) => Math.min(Math.max(v, low), high);
  const xs = [a[0], b[0]].map((v) => vx(clamp(v, f.x0, f.x1), f)).sort((p, q) => p - q);
  const ys = [a[1], b[1]].map((v) => vy(clamp(v, f.y0, f.y1), f)).sort((p, q) => p - q);
  return [xs[0], xs[1], ys[0], ys[1]];
}
element.addEventListener("pointerdown", (e) => {
  if (e.target !== canvas() || !data) return;
  drag = at(e); e.target.setPointerCapture(e.pointerId);
});
element.addEventListener("pointermove", (e) => {
  if (e.target !== canvas() || !data) return;
  const p = at(e);
  if (drag && Math.hypot(p[0] - drag[0], p[1] - drag[1]) > 4) { box = dragged(drag, p); near = -1; tip().hidden = true; draw(); return; }
  near = nearest(...p);
  const t = tip();
  t.hidden = near < 0;
  if (near >= 0) {
    t.textContent = `feature ${data.id[near]}: ${(100 * 10 ** data.x[near]).toPrecision(2)} % of patches, mean ${(10 ** data.y[near]).toPrecision(3)}`;
    t.style.left = `${Math.min(p[0] + 14, canvas().clientWidth - 240)}px`; t.style.top = `${p[1] + 14}px`;
  }
  draw();
});
element.addEventListener("pointerup", (e) => {
  if (!drag || !data) return;
  const p = at(e), start = drag;
  drag = null;
  if (Math.hypot(p[0] - start[0], p[1] - start[1]) > 4) trigger("input", { box: dragged(start, p) });
  else if ((near = nearest(...p)) >= 0) trigger("select", { feature: data.id[near] });
});
element.addEventListener("pointerleave", () => { near = -1; if (tip()) tip().hidden = true; draw(); });
new ResizeObserver(draw).observe(element);
watch("value", () => { read(); draw(); });
read();
draw();
