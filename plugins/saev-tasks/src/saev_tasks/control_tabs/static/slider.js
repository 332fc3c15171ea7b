// Logits under edits where the probe reads the SAE's own site: `Edit.activation` of saev_core, of which the server sends the
// slopes, so that the page needs nobody while a slider slides. Knows no page. null: a feature is not there, or has no slopes.
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
