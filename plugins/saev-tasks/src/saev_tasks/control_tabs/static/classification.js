// Classification: bars of the predicted classes before and after. If the probe reads the SAE's own site, its logits are
// linear in each strength, so the page computes them while a slider moves, and the server computes the exact ones at the end.
let before = null, after = null;
const colour = { before: "#8c8c8c", after: "#009e73" };
const percent = (p) => (p >= 0.9995 ? "100\u00a0%" : p < 0.0005 ? "0\u00a0%" : p < 0.1 ? `${(100 * p).toFixed(1)}\u00a0%` : `${Math.round(100 * p)}\u00a0%`);

function softmax(logits) {
  let top = -Infinity, sum = 0;
  for (const v of logits) if (v > top) top = v;
  const p = Float64Array.from(logits, (v) => Math.exp(v - top));
  for (const v of p) sum += v;
  return p.map((v) => v / sum);
}
function best(p, n) {
  const found = [];
  for (let c = 0; c < p.length; c++) {
    if (found.length < n || p[c] > p[found[found.length - 1]]) {
      let at = found.length;
      while (at > 0 && p[c] > p[found[at - 1]]) at--;
      found.splice(at, 0, c);
      if (found.length > n) found.pop();
    }
  }
  return found;
}
function draw() {
  shown.before = unpack(shown.before, Float32Array);
  before = softmax(shown.before);
  after = before;
  const [width, height] = shown.size, frame = one(".ctl-seen"), image = frame.querySelector("img");
  frame.style.aspectRatio = `${width}/${height}`;
  frame.style.maxWidth = `min(100%, calc(42vh * ${(width / height).toFixed(4)}))`;
  image.src = shown.src;
  image.alt = `picture ${shown.image}`;
  one(".ctl-caption").textContent = `Picture ${shown.image}${shown.label ? ` · labelled ${shown.label}` : ""} · ${shown.place}`;
  one(".mine h3").textContent = `Features that support ${known.classes[shown.mine]}${shown.truth < 0 ? ", the predicted class" : ", the class of this picture"}`;
  bars();
}
function preview() {
  if (!known.linear) return false;
  const logits = moved(shown.before, edits(), rows);
  if (!logits) return false;
  after = softmax(logits);
  bars();
  return true;
}
function arrive(told) { after = softmax(unpack(told.after, Float32Array)); bars(); }
function unchanged() { after = before; bars(); }
function relabel() { bars(); }

function listed() {
  const list = best(before, 5);
  for (const c of [shown.mine, shown.other]) if (!list.includes(c)) list.push(c);
  for (const c of best(after, 5)) if (!list.includes(c)) list.push(c);
  return list;
}
function headline() {
  const was = best(before, 1)[0], is = best(after, 1)[0], names = known.classes;
  if (!edits().length) return ["The probe predicts ", names[was], ` (${percent(before[was])}).`];
  if (is === was) return ["The probe still predicts ", names[is], ` (${percent(after[is])}, before ${percent(before[was])}).`];
  return ["The probe now predicts ", names[is], ` (${percent(after[is])}) instead of ${names[was]} (${percent(before[was])}).`];
}
function bars() {
  const [says, name, rest] = headline(), place = one(".ctl-bars");
  one(".ctl-head").replaceChildren(says, make("b", {}, name), rest);
  const have = Object.fromEntries([...place.children].map((line) => [line.dataset.class, line]));
  const lines = listed().map((c) => {
    const line = have[c] || make("div", { class: "ctl-bar", role: "row", "data-class": `${c}` }, make("span", { role: "rowheader" }),
      make("span", { class: "pair", role: "presentation" }, make("i", { class: "b" }), make("i", { class: "a" })), make("span", { class: "n", role: "cell" }));
    const [label, pair, number] = line.children;
    label.textContent = label.title = known.classes[c];
    label.className = c === shown.mine ? "is-mine" : c === shown.other ? "is-other" : "";
    pair.firstChild.style.width = `${100 * before[c]}%`;
    pair.lastChild.style.width = `${100 * after[c]}%`;
    const moved = edits().length > 0;
    pair.lastChild.hidden = !moved;
    number.textContent = moved ? `${percent(before[c])} → ${percent(after[c])}` : percent(before[c]);
    return line;
  });
  if (lines.length !== place.children.length || lines.some((line, i) => place.children[i] !== line)) place.replaceChildren(...lines);
}
async function figure() {
  const list = listed(), changed = edits(), [width, height] = shown.size, big = 420;
  const scale = Math.min(big / width, big / height), high = Math.max(height * scale + 90, 70 + list.length * 46) + 40 + changed.length * 22;
  const { canvas, g, text } = paper(1200, Math.max(high, 420));
  const image = await loaded(shown.src);
  text(`Picture ${shown.image}${shown.label ? ` · ${shown.label}` : ""}`, 30, 42, { size: 20, bold: true });
  if (image) g.drawImage(image, 30, 60, width * scale, height * scale);
  text("before", 700, 42, { colour: "#555" }); swatch(g, 680, 32, colour.before);
  text("after", 800, 42, { colour: "#555" }); swatch(g, 780, 32, colour.after);
  list.forEach((c, i) => {
    const y = 66 + i * 46;
    text(known.classes[c], 670, y + 20, { align: "right", most: 165 });
    g.fillStyle = colour.before; g.fillRect(680, y, Math.max(1, 360 * before[c]), 14);
    g.fillStyle = colour.after; g.fillRect(680, y + 16, Math.max(1, 360 * after[c]), 14);
    text(`${percent(before[c])} → ${percent(after[c])}`, 1055, y + 20, { size: 15 });
  });
  const foot = Math.max(60 + height * scale, 66 + list.length * 46) + 34;
  changed.forEach(([f, s], i) => text(`feature ${f}${rows[f] && rows[f].name ? ` (${rows[f].name})` : ""}: ${words(s)}`, 30, foot + i * 22, { size: 15, most: 1140 }));
  save(canvas, `classification-${shown.image}.png`);
}
start();
