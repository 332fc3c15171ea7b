// Logits with edits if the probe reads the SAE's own site: same as `Edit.activation` of saev_core, with slopes from the
// server, so that no request is needed while a slider moves. Independent of the page. null: a feature is missing or has no slopes.
function moved(before, edits, rows) {
  const logits = Float64Array.from(before);
  for (const [feature, strength] of edits) {
    const row = rows[feature];
    if (!row || !row.effect) return null;
    const by = strength > 0 ? strength * row.up : strength * row.down;
    for (let c = 0; c < logits.length; c++) logits[c] += by * row.effect[c];
  }
  return logits;
}
