// Markable patches: click one, drag over several (a drag that starts on a marked one removes marks), or use the
// keyboard: arrows move, Space marks, Shift and arrows mark a rectangle, Escape clears.
let cursor = -1, anchor = -1, drag = null;
const cells = () => known.rows * known.cols;
function rectangle(a, b) {
  const [ra, ca, rb, cb] = [Math.floor(a / known.cols), a % known.cols, Math.floor(b / known.cols), b % known.cols], found = [];
  for (let r = Math.min(ra, rb); r <= Math.max(ra, rb); r++) for (let c = Math.min(ca, cb); c <= Math.max(ca, cb); c++) found.push(r * known.cols + c);
  return found;
}
function painted(base, a, b, on) {
  const set = new Set(base);
  for (const p of rectangle(a, b)) if (on) set.add(p); else set.delete(p);
  return [...set].sort((x, y) => x - y);
}
function mark_patches(patches, final) {
  const before = now.where.join();
  now.where = patches;
  marked();
  if (final) commit();
  if (final || now.where.join() !== before) follow(final);
}
function marked() {
  const n = now.where.length, set = new Set(now.where);
  one(".ctl-where").textContent = n ? `Changes act on the ${n} marked ${n === 1 ? "patch" : "patches"} only.` : "Changes act on the whole picture.";
  one(".ctl-unmark").hidden = !n;
  for (const canvas of every(".ctl-marks")) {
    const box = canvas.getBoundingClientRect(), ratio = window.devicePixelRatio || 1;
    canvas.width = Math.max(1, Math.round(box.width * ratio)); canvas.height = Math.max(1, Math.round(box.height * ratio));
    const g = canvas.getContext("2d"), w = canvas.width / known.cols, h = canvas.height / known.rows;
    const lines = (width, ink) => {  // around the marked area, not between its patches
      g.lineWidth = width * ratio; g.strokeStyle = ink; g.beginPath();
      for (const p of set) {
        const c = p % known.cols, x = c * w, y = Math.floor(p / known.cols) * h;
        if (!set.has(p - known.cols)) { g.moveTo(x, y); g.lineTo(x + w, y); }
        if (!set.has(p + known.cols)) { g.moveTo(x, y + h); g.lineTo(x + w, y + h); }
        if (c === 0 || !set.has(p - 1)) { g.moveTo(x, y); g.lineTo(x, y + h); }
        if (c === known.cols - 1 || !set.has(p + 1)) { g.moveTo(x + w, y); g.lineTo(x + w, y + h); }
      }
      g.stroke();
    };
    if (n) { lines(4, "#000"); lines(2, "#fff"); }
    if (cursor >= 0 && document.activeElement === canvas) {
      g.lineWidth = 2 * ratio; g.strokeStyle = "#d55e00";
      g.strokeRect((cursor % known.cols) * w, Math.floor(cursor / known.cols) * h, w, h);
    }
  }
}
function spot(patch) {
  const row = Math.floor(patch / known.cols), col = patch % known.cols;
  const middle = (label) => known.classes[label[Math.floor((row + 0.5) * shown.height / known.rows) * shown.width + Math.floor((col + 0.5) * shown.width / known.cols)]];
  const was = middle(shown.before), is = middle(now_labels);
  one(".ctl-spot").textContent = `Row ${row + 1}, column ${col + 1}: ${was === is ? was : `${was} → ${is}`}${now.where.includes(patch) ? " · marked" : ""}`;
}
function under(event, canvas, anywhere) {
  const box = canvas.getBoundingClientRect(), c = Math.floor((event.clientX - box.left) / box.width * known.cols), r = Math.floor((event.clientY - box.top) / box.height * known.rows);
  if (!anywhere && (c < 0 || r < 0 || c >= known.cols || r >= known.rows)) return -1;
  return Math.min(Math.max(r, 0), known.rows - 1) * known.cols + Math.min(Math.max(c, 0), known.cols - 1);
}
for (const canvas of every(".ctl-marks")) {
  canvas.addEventListener("pointerdown", (event) => {
    const at = shown && event.button === 0 ? under(event, canvas) : -1;
    if (at < 0) return;
    event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    canvas.focus({ preventScroll: true });
    drag = { at, base: now.where, on: !now.where.includes(at) };
    cursor = anchor = at;
    mark_patches(painted(drag.base, at, at, drag.on), false);
    spot(at);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!shown) return;
    const at = under(event, canvas, drag);
    if (at < 0) return;
    if (drag && at !== cursor) { cursor = at; mark_patches(painted(drag.base, drag.at, at, drag.on), false); }
    spot(at);
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { if (drag) { drag = null; commit(); follow(true); } });
  canvas.addEventListener("keydown", (event) => {
    if (!shown) return;
    const by = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (cursor < 0) cursor = 0;
    if (by) {
      const r = Math.min(Math.max(Math.floor(cursor / known.cols) + by[0], 0), known.rows - 1), c = Math.min(Math.max(cursor % known.cols + by[1], 0), known.cols - 1);
      if (!event.shiftKey) anchor = -1; else if (anchor < 0) anchor = cursor;
      cursor = r * known.cols + c;
      if (event.shiftKey) mark_patches(painted(now.where, anchor, cursor, true), true); else marked();
    } else if (event.key === " " || event.key === "Enter") mark_patches(painted(now.where, cursor, cursor, !now.where.includes(cursor)), true);
    else if (event.key === "Escape") mark_patches([], true);
    else return;
    event.preventDefault();
    spot(cursor);
  });
  for (const name of ["focus", "blur"]) canvas.addEventListener(name, () => { if (shown) { if (cursor < 0) cursor = 0; marked(); } });
}
doing.unmark = () => mark_patches([], true);
new ResizeObserver(() => { if (shown && element.isConnected) marked(); }).observe(one(".ctl-pair"));
