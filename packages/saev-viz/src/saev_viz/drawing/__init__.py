"""Charts, SVG and heat maps from plain numbers and pictures. Independent of runs, HTML pages and gradio."""
