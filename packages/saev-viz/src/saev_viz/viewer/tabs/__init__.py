"""The built-in tabs, one module each, with `TITLE` and `build(viewer)`."""
