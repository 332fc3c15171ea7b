"""Feature names, proposed from known concepts or from text, and scored on held-out images.

Import `Names`, `names_from`, `names_from_text`. A feature whose name scores too low stays unnamed.
"""
