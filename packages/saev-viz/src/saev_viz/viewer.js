// Keys, the address of what is shown, links to copy, and heat maps that come when they are asked for.
let saevShown = -1;

function saevLink(feature, sae) {
  if (feature === null || feature === undefined) return [];
  const address = new URL(location.href);
  address.searchParams.set("sae", sae);
  address.searchParams.set("feature", feature);
  history.replaceState(null, "", address);
  saevShown = +feature;
  saevMark();
  return [];
}
// The shown feature stands out in lists.
function saevMark() {
  document.querySelectorAll("#saev-list [data-feature]").forEach((line) => {
    const on = +line.dataset.feature === saevShown;
    line.classList.toggle("on", on);
    if (!on) { line.removeAttribute("aria-current"); return; }
    line.setAttribute("aria-current", "true");
    const list = line.parentElement, above = line.offsetTop - list.offsetTop;  // scrolls the list alone, never the page
    if (above < list.scrollTop) list.scrollTop = above;
    else if (above + line.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = above + line.offsetHeight - list.clientHeight;
  });
}
// Each heat map of a sample costs the server a read: it comes when one points at the picture, or asks for all.
let saevAll = false;
function saevHeat(frame, show) {
  const heat = frame.querySelector("img.heat[data-src]");
  if (!heat) return;
  if (show && heat.getAttribute("src") !== heat.dataset.src) heat.src = heat.dataset.src;
  heat.hidden = !show;
}
function saevHeats(pane) {
  const button = pane.querySelector("[data-heats]");
  if (!button) return;
  button.setAttribute("aria-pressed", saevAll);
  button.textContent = saevAll ? "Hide heat maps" : "Show heat maps";
  const near = new IntersectionObserver((seen) => seen.forEach((one) => { if (one.isIntersecting) { saevHeat(one.target, saevAll); near.unobserve(one.target); } }), { rootMargin: "200px" });
  pane.querySelectorAll(".tenths .frame").forEach((frame) => { if (saevAll) near.observe(frame); else saevHeat(frame, false); });
}
for (const [name, show] of [["pointerover", true], ["focusin", true], ["pointerout", false], ["focusout", false]]) {
  document.addEventListener(name, (event) => {
    const frame = event.target.closest && event.target.closest(".tenths .frame");
    if (frame && !saevAll) saevHeat(frame, show);
  });
}
async function saevCopy(button) {
  const address = new URL(button.dataset.copy, location.origin + location.pathname).href;
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(address);
    button.textContent = "Copied";
  } catch {  // not allowed, or not offered without https: let the person copy it
    window.prompt("Copy this link:", address);
    return;
  }
  setTimeout(() => { button.textContent = before; }, 1500);
}
document.addEventListener("click", (event) => {
  const copy = event.target.closest("[data-copy]"), heats = event.target.closest("[data-heats]");
  if (copy) saevCopy(copy);
  if (heats) { saevAll = !saevAll; saevHeats(heats.closest("#saev-card") || document); }
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea, select, [contenteditable]")) return;
  const search = document.querySelector("#saev-search textarea, #saev-search input");
  if (event.key === "/" && search && search.offsetParent) { event.preventDefault(); search.focus(); search.select(); return; }
  const button = { n: "saev-next", j: "saev-next", p: "saev-previous", k: "saev-previous", r: "saev-random" }[event.key];
  const found = button && document.getElementById(button);
  if (found && found.offsetParent) { event.preventDefault(); found.click(); }
});
