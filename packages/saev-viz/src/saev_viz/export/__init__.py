"""The gallery: a folder of static pages with chosen features. It knows the run as `run_view` shows it, and no server."""
