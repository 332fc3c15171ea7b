"""What several tasks share: the read-out of a probe, benches for edits, control experiments, patch vectors, results."""
