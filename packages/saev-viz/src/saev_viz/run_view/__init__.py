"""A run as a viewer sees it: SAEs, features, thumbnails, notes, uploads and codes of pictures. No HTML and no gradio."""
