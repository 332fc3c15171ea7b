"""Blocks of HTML: a feature's page, lists, comparisons, the overview, the Pareto front. It takes a `View` and gives text; no gradio."""
