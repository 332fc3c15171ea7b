"""The report: a run in one self-contained HTML file. Reads the run through `run_view`; needs no server."""
