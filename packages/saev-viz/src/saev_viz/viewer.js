// Keys, and the address of what is shown.
function saevLink(feature, sae) {
  const address = new URL(location.href);
  address.searchParams.set("sae", sae);
  address.searchParams.set("feature", feature);
  history.replaceState(null, "", address);
  return [];
}
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea, select, [contenteditable]")) return;
  const button = { n: "saev-next", p: "saev-previous", r: "saev-random" }[event.key];
  const found = button && document.getElementById(button);
  if (found && found.offsetParent) { event.preventDefault(); found.click(); }
});
