"""The interactive viewer, served by `saev view`."""
