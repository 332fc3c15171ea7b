"""Configuration: frozen pydantic models with one line of documentation and a range per field.

`saev_core` exports `Config`, `PluginConfig`, `PluginRef`, `RunConfig` and the class of each stage. Imports no torch and no plugin;
each plugin defines its own options.
"""
