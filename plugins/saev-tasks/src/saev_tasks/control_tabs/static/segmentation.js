// Segmentation: the class of every pixel before and after, as colours over the picture, and a table of changes.
let now_labels = null;
const share = (n) => { const p = 100 * n / (shown.width * shown.height); return `${p > 0 && p < 0.1 ? "<0.1" : p.toFixed(1)}\u00a0%`; };
const ink = (c) => `rgb(${known.colours[c].join(",")})`;

function draw() {
  shown.before = unpack(shown.before, Uint16Array);
  const [width, height] = shown.size, [left, above, wide, high] = shown.box;
  for (const frame of every(".ctl-seen")) {
    frame.style.aspectRatio = `${width}/${height}`;
    frame.style.maxWidth = `min(100%, calc(48vh * ${(width / height).toFixed(4)}))`;
    frame.querySelector("img").src = shown.src;
    frame.querySelector("img").alt = `picture ${shown.image} ${frame.dataset.side}`;
    for (const canvas of frame.querySelectorAll("canvas")) Object.assign(canvas.style, { left: `${left}%`, top: `${above}%`, width: `${wide}%`, height: `${high}%` });
  }
  one(".ctl-caption").textContent = `Picture ${shown.image}${shown.label ? ` · labelled ${shown.label}` : ""} · ${shown.place}`;
  cursor = anchor = -1;
  now.where = now.where.filter((p) => p < cells());
  overlay("before", shown.before);
  arrived(shown.before);
  marked();
}
function overlay(side, labels) {
  const canvas = one(`[data-side="${side}"] .ctl-map`), g = canvas.getContext("2d"), { width, height } = shown;
  const faint = /background|void|other|unlabel|nothing/i.test(known.classes[0]), only = side === "after" && one(".ctl-only").checked;
  canvas.width = width; canvas.height = height;
  const pixels = g.createImageData(width, height), data = pixels.data;
  for (let y = 0, i = 0; y < height; y++) for (let x = 0; x < width; x++, i++) {
    const c = labels[i], rgb = known.colours[c], edge = (x + 1 < width && labels[i + 1] !== c) || (y + 1 < height && labels[i + width] !== c);
    if (only && c === shown.before[i]) continue;
    data[4 * i] = edge ? 0 : rgb[0]; data[4 * i + 1] = edge ? 0 : rgb[1]; data[4 * i + 2] = edge ? 0 : rgb[2]; data[4 * i + 3] = faint && c === 0 && !edge ? 90 : 255;
  }
  g.putImageData(pixels, 0, 0);
}
function arrived(labels) {
  now_labels = labels;
  overlay("after", labels);
  const before = new Int32Array(known.classes.length), after = new Int32Array(known.classes.length), moves = new Map();
  let changed = 0;
  for (let i = 0; i < labels.length; i++) {
    const a = shown.before[i], b = labels[i];
    before[a]++; after[b]++;
    if (a !== b) { changed++; const key = a * 65536 + b; moves.set(key, (moves.get(key) || 0) + 1); }
  }
  const rank = [...before.keys()].filter((c) => before[c]).sort((a, b) => before[b] - before[a]);
  for (const c of [...after.keys()].filter((c) => after[c] && !before[c]).sort((a, b) => after[b] - after[a])) rank.push(c);
  one(".ctl-table tbody").replaceChildren(...rank.map((c) => {
    const by = after[c] - before[c], sign = by > 0 ? "+" : by < 0 ? "−" : "";
    return make("tr", { "data-class": `${c}` }, make("th", {}, make("i", { style: `background:${ink(c)}` }), known.classes[c]), make("td", {}, share(before[c])), make("td", {}, share(after[c])),
      make("td", { class: by ? "moved" : "" }, by ? `${sign}${Math.abs(by)} px (${sign}${share(Math.abs(by))})` : "0"),
      make("td", {}, make("button", { type: "button", "data-mark": `${c}`, title: `Mark the patches predicted as ${known.classes[c]} before` }, "mark")));
  }));
  const head = one(".ctl-head");
  if (!edits().length) head.textContent = `The probe predicts ${rank.slice(0, 3).map((c) => known.classes[c]).join(", ")}${rank.length > 3 ? ` and ${rank.length - 3} more` : ""}. Move a slider to change the prediction.`;
  else if (!changed) head.textContent = "No pixel has changed class yet.";
  else {
    const [[key, n]] = [...moves].sort((a, b) => b[1] - a[1]);
    head.replaceChildren(make("b", {}, `${share(changed)} of the pixels change`), `, mostly from ${known.classes[Math.floor(key / 65536)]} to `, make("b", {}, known.classes[key % 65536]), ` (${share(n)}).`);
  }
}
function preview() { return false; }
function arrive(told) { arrived(unpack(told.after, Uint16Array)); }
function unchanged() { arrived(shown.before); }
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-mark]");
  if (!button) return;
  const label = +button.dataset.mark, found = [];
  for (let p = 0; p < cells(); p++) {
    const row = Math.floor((Math.floor(p / known.cols) + 0.5) * shown.height / known.rows), col = Math.floor((p % known.cols + 0.5) * shown.width / known.cols);
    if (shown.before[row * shown.width + col] === label) found.push(p);
  }
  mark_patches(found, true);
});
const shade = () => one(".ctl").style.setProperty("--shade", one(".ctl-shade").value / 100);
one(".ctl-shade").addEventListener("input", shade);
one(".ctl-only").addEventListener("change", () => { if (shown) overlay("after", now_labels); });
shade();
async function figure() {
  const changed = edits(), table = every(".ctl-table tbody tr").slice(0, 14), [width, height] = shown.size, scale = Math.min(390 / width, 460 / height);
  const [left, above, wide, high] = shown.box.map((v) => v / 100), w = width * scale, h = height * scale;
  const foot = 70 + h + 30;
  const { canvas, g, text } = paper(1200, Math.max(foot + changed.length * 22 + 30, 90 + table.length * 26));
  const image = await loaded(shown.src);
  ["before", "after"].forEach((side, i) => {
    const x = 20 + i * (w + 14);
    text(side, x, 40, { size: 18, bold: true });
    if (image) g.drawImage(image, x, 54, w, h);
    g.globalAlpha = one(".ctl-shade").value / 100; g.imageSmoothingEnabled = false;
    g.drawImage(one(`[data-side="${side}"] .ctl-map`), x + left * w, 54 + above * h, wide * w, high * h);
    g.globalAlpha = 1; g.imageSmoothingEnabled = true;
    g.drawImage(one(`[data-side="${side}"] .ctl-marks`), x + left * w, 54 + above * h, wide * w, high * h);
  });
  const x = 20 + 2 * (w + 14) + 6, most = 1200 - x - 30;
  text("class", x + 22, 40, { colour: "#555" }); text("change", 1180, 40, { align: "right", colour: "#555" });
  table.forEach((row, i) => {
    const y = 72 + i * 26, cell = row.children;
    swatch(g, x, y - 12, ink(+row.dataset.class));
    text(cell[0].textContent, x + 22, y, { size: 14, most: most * 0.4 });
    text(`${cell[1].textContent} → ${cell[2].textContent}`, 1180, y, { size: 14, align: "right" });
  });
  const where = now.where.length ? ` on ${now.where.length} marked patches` : "";
  text(`Picture ${shown.image}`, 20, foot, { size: 15, bold: true });
  changed.forEach(([f, s], i) => text(`feature ${f}${rows[f] && rows[f].name ? ` (${rows[f].name})` : ""}: ${words(s)}${where}`, 20, foot + 22 + i * 22, { size: 15, most: 2 * w }));
  save(canvas, `segmentation-${shown.image}.png`);
}
start();
