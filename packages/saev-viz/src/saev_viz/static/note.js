// A note that is saved automatically on leaving it. The message names its feature, since the page may show another by then.
// `element`, `props`, `trigger` and `watch` come from gradio's HTML component; the value is the JSON of `tabs/features.py: _note`.
const PAUSE_MS = 2000;  // idle time before autosave: the window may be closed without leaving the box
let note = null, sent = null, pause = 0;
const box = () => element.querySelector("textarea");
const say = (text) => { element.querySelector("[role=status]").textContent = text; };
const changed = () => note !== null && box().value.trim() !== note.text.trim();

function read() {
  const next = props.value ? JSON.parse(props.value) : null;
  if (next && (next.saved || next.failed) && note && !(next.sae === note.sae && next.feature === note.feature)) {
    if (next.failed) say(`The note on feature ${next.feature} was not saved: ${next.failed}`);
    return;  // response for an earlier note: another one is shown now
  }
  const same = note && next && note.sae === next.sae && note.feature === next.feature;
  if (!same && changed()) send();
  element.hidden = !next;
  if (!next) { note = null; return; }
  const typed = same && sent !== null && box().value.trim() !== sent.trim();  // typed more while saving
  note = next;
  if (next.failed) { sent = null; say(`Not saved: ${next.failed}`); return; }
  if (!typed) box().value = next.text;
  if (next.saved) say(typed ? "" : next.text.trim() === (sent || "").trim() ? "saved" : "saved, merged with changes from another window");
  else say("");
  sent = null;
}
function send() {
  clearTimeout(pause);
  if (!changed() || sent === box().value) return;
  sent = box().value;
  say("saving…");
  trigger("input", { sae: note.sae, feature: note.feature, text: sent, seen: note.text });
}
element.addEventListener("focusout", (event) => { if (event.target === box()) send(); });
element.addEventListener("click", (event) => { if (event.target.closest("button") && !changed()) say("saved"); else if (event.target.closest("button")) send(); });
element.addEventListener("input", () => {
  say(changed() ? "not saved yet" : "");
  clearTimeout(pause);
  pause = setTimeout(send, PAUSE_MS);
});
watch("value", read);
read();
