// Two pictures side by side, added to `patches.js` in each: hovering over a patch of one marks the position on the other, though
// their crops and grids may differ. Runs in the same scope, after the listeners there.
const other = () => [...document.querySelectorAll(".saev-pane")].find((pane) => !pane.contains(element) && pane.offsetParent);
function say() {
  if (!data) return;
  const cols = data.cols, rows = data.rows, at = patch;
  const place = at < 0 ? null : [
    data.box[0] + ((at % cols) + 0.5) / cols * data.box[2],
    data.box[1] + (Math.floor(at / cols) + 0.5) / rows * data.box[3],
  ];
  document.dispatchEvent(new CustomEvent("saev-place", { detail: { from: element, place, kept: kept >= 0 } }));
}
for (const name of ["pointerover", "pointerout", "click", "focusin"]) {
  element.addEventListener(name, (e) => { if (e.target.closest(".grid")) say(); });
}
element.addEventListener("keydown", (e) => { if (e.target.closest(".grid") && e.key.startsWith("Arrow")) say(); });
document.addEventListener("saev-place", ({ detail }) => {
  if (!element.isConnected || !element.offsetParent || detail.from === element || !data) return;
  let at = -1;
  if (detail.place) {  // percent of the whole picture
    const col = Math.floor((detail.place[0] - data.box[0]) / data.box[2] * data.cols);
    const row = Math.floor((detail.place[1] - data.box[1]) / data.box[3] * data.rows);
    if (col >= 0 && col < data.cols && row >= 0 && row < data.rows) at = row * data.cols + col;
  }
  patch = at;
  kept = detail.kept ? at : -1;
  list();
});
function bare() { if (!data && props.value === "null") find(".caption").textContent = ""; }
watch("value", bare);
bare();
