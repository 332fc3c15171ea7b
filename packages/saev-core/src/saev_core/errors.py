"""Every error a person can meet: one line that says what is wrong, where, and what to do."""


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


class ModelError(SaevError):
    """A model cannot be loaded, or lacks the block that was asked for."""


class DatasetError(SaevError):
    """A data set is missing, empty, gated or unreadable."""


class ChangedDatasetError(DatasetError):
    """The pictures are others than those that were recorded."""


class DownloadError(DatasetError):
    """An archive cannot be fetched or unpacked, or is not what it should be."""


class BadImageError(DatasetError):
    """One image cannot be decoded. `path` names it as the data set knows it."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path} is not a readable image ({why}); drop it, or record it as missing with --on-bad-image missing.")
        self.path = path
        self.why = why


class StoreError(SaevError):
    """An activation store is missing, damaged, of another model or format, or cannot be written."""


class CheckpointError(SaevError):
    """A checkpoint is missing, damaged, or does not match the store or model."""


class ProbeError(SaevError):
    """A probe is missing, damaged, does not match what it is to read, or cannot be trained."""


class SteerError(SaevError):
    """An edit names a feature, site or patch that is not there, or cannot be written into the model."""


class TrainError(SaevError):
    """Training cannot start or go on."""


class RunError(SaevError):
    """A folder is not a run, or lacks the artifact that was asked for."""


class DeviceError(UsageError):
    """The device that was asked for is absent."""


class ShapeError(SaevError, ValueError):
    """A tensor's shape is not what the function needs."""
