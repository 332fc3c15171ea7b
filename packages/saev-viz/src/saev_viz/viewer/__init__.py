"""The viewer: a gradio application with its server, login and tabs. The only package that imports gradio.

To add a built-in tab, write a module in `tabs/` and list it in `app.TABS`; plugins add tabs through the hook `viewer_tabs`.
"""
