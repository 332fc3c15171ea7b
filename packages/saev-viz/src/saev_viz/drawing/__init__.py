"""Charts, SVG and heat maps from plain numbers and pictures. It knows nothing of runs, HTML pages or gradio."""
