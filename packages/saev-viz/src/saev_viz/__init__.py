"""Pictures of a run: heat maps over originals, and the report."""
