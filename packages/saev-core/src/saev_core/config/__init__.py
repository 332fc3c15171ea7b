"""Configuration: frozen pydantic models with one line of documentation and a range per field.

Import `Config`, `PluginConfig`, `PluginRef`, `RunConfig` and the stages' own classes from here. It imports no torch and no
plugin: what the options of a plugin are is known to that plugin alone.
"""
