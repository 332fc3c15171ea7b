"""One tab a file: `TITLE`, and `build(viewer)`, called inside its `gr.Tab`."""
