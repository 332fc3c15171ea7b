// Error messages, keys, the URL of the current view, links to copy, and heat maps loaded on demand.
let saevShown = -1;

// Gradio does not show errors of calls that bypass its queue, as ours do: show them here.
function saevTell(text) {
  let wall = document.getElementById("saev-told");
  if (!wall) {
    wall = document.createElement("div");
    wall.id = "saev-told";
    wall.setAttribute("role", "alert");
    document.body.append(wall);
  }
  if ([...wall.children].some((one) => one.firstChild.textContent === text)) return;
  const said = document.createElement("div"), close = document.createElement("button");
  said.append(text, close);
  close.textContent = "✕";
  close.setAttribute("aria-label", "close this message");
  close.addEventListener("click", () => said.remove());
  wall.append(said);
  setTimeout(() => said.remove(), 12000);
}
const saevFetch = window.fetch;
window.fetch = async (...request) => {
  const ours = String(request[0].url || request[0]).includes("/gradio_api/run/");
  let answer;
  try {
    answer = await saevFetch(...request);
  } catch (error) {
    if (ours) saevTell("The viewer does not respond; is saev view still running?");
    throw error;
  }
  if (ours && !answer.ok) {
    answer.clone().json().then((said) => saevTell(said.error || said.detail || `The viewer failed (${answer.status}).`),
      () => saevTell(`The viewer failed (${answer.status}).`));
  }
  return answer;
};

// The tab named in the URL.
function saevTab() {
  const asked = new URL(location.href).searchParams;
  return { __type__: "update", selected: asked.get("tab") || (asked.get("feature") ? "features" : asked.get("image") ? "image" : "overview") };
}
function saevLink(feature, sae) {
  if (feature === null || feature === undefined || feature < 0) return [];
  const address = new URL(location.href);
  address.searchParams.set("sae", sae);
  address.searchParams.set("feature", feature);
  history.replaceState(null, "", address);
  saevShown = +feature;
  saevMark();
  return [];
}
// Highlight the current feature in lists.
function saevMark() {
  document.querySelectorAll("#saev-list [data-feature]").forEach((line) => {
    const on = +line.dataset.feature === saevShown;
    line.classList.toggle("on", on);
    if (!on) { line.removeAttribute("aria-current"); return; }
    line.setAttribute("aria-current", "true");
    const list = line.parentElement, above = line.offsetTop - list.offsetTop;  // scrolls only the list, never the page
    if (above < list.scrollTop) list.scrollTop = above;
    else if (above + line.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = above + line.offsetHeight - list.clientHeight;
  });
}
// Each heat map of a sample costs the server a read: load it on hover, or when all are requested.
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
  } catch {  // not permitted, or unavailable without https: let the user copy it
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
