"""The report: a run in one self-contained HTML file. It knows the run as `run_view` shows it, and no server."""
