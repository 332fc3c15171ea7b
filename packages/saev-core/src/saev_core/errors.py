"""Exceptions that users can see; each message is one line: what is wrong, where, and what to do."""


class SaevError(Exception):
    """Anything that went wrong outside our own code; the command line prints it as one line."""

    exit_code = 1


class UsageError(SaevError):
    """The command, flag or configuration asks for something that does not exist."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration key or value is unknown, mistyped or out of range."""


class PluginError(SaevError):
    """A plugin is installed but cannot be used."""


class UnknownPluginError(PluginError, UsageError):
    """No installed plugin has that name, or more than one has."""

    exit_code = 2


class NoViewerError(PluginError):
    """No viewer is installed that can do what is asked."""


class ModelError(SaevError):
    """A model cannot be loaded, or lacks the requested block."""


class DatasetError(SaevError):
    """A data set is missing, empty, gated or unreadable."""


class ChangedDatasetError(DatasetError):
    """The pictures are others than those that were recorded."""


class DownloadError(DatasetError):
    """An archive cannot be fetched or unpacked, or does not match its checksum or size."""


class BadImageError(DatasetError):
    """One image cannot be decoded. `path` is its name in the data set."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path} is not a readable image ({why}); drop it, or record it as missing with --on-bad-image missing.")
        self.path = path
        self.why = why


class StoreError(SaevError):
    """An activation store is missing, damaged, of another model or format, or cannot be written to."""


class CheckpointError(SaevError):
    """A checkpoint is missing, damaged, or does not match the store or model."""


class ProbeError(SaevError):
    """A probe is missing, damaged, does not match its inputs, or cannot be trained."""


class SteerError(SaevError):
    """An edit names a feature, site or patch that does not exist, or cannot be applied to the model."""


class TrainError(SaevError):
    """Training cannot start or continue."""


class RunError(SaevError):
    """A folder is not a run, or lacks the requested artifact."""


class DeviceError(UsageError):
    """The requested device is not available."""


class ShapeError(SaevError, ValueError):
    """A tensor's shape is not what the function needs."""
