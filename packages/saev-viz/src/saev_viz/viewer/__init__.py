"""The viewer: a gradio application with its server, login and tabs. The only room that knows gradio.

To add a tab of our own, write a module in `tabs/` and list it in `app.TABS`; a plugin's tab comes through the hook `viewer_tabs`.
"""
