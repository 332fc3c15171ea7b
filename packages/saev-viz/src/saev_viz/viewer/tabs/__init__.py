"""The viewer's own tabs, one file each, with a `TITLE` and a `build(viewer)`."""
