"""Change features inside a running model: edits, how they are applied, and the blocks downstream of a site."""
