"""Blocks of HTML: a feature's page, lists, comparisons, the overview, the Pareto front. Turns a `View` into text, without gradio."""
