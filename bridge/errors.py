"""Every error that the bridge raises on purpose. Errors of drivers and libraries are wrapped at the edge."""


class BridgeError(Exception):
    """Base of all errors of the bridge. Its text is for the person who meets it: what, where, what to do."""


class SettingsError(BridgeError):
    """A setting is missing, unknown or contradicts another one."""


class StartError(BridgeError):
    """The bridge cannot start: a port is taken, a file cannot be read, a schema does not fit."""


class DatabaseAwayError(StartError):
    """The database cannot be reached now; that may go away by itself."""


class RefusedError(BridgeError):
    """A message cannot be accepted as it is; it becomes a dead letter with this error's `reason`.

    `reason` is a short fixed word for metrics and filters (`not_json`, `bad_time`), the text says what exactly.
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class VersionConflictError(RefusedError):
    """A change was made for another version than the present one. It is answered, not kept: whoever sent it reads the
    present state and decides anew."""

    def __init__(self, expected: int | None, version: int) -> None:
        super().__init__("version_conflict", f"made for version {expected}, and the present one is {version}")
        self.expected = expected
        self.version = version


class AlreadySettledError(BridgeError):
    """A receipt was settled twice."""


class StorageError(BridgeError):
    """The database refused a statement for good: the data or the statement is wrong, a retry would not help."""


class StorageUnavailableError(BridgeError):
    """The database cannot be reached or is busy; the same statement may succeed later."""


class CircuitOpenError(StorageUnavailableError):
    """The breaker of a backend is open: the call was not tried. `retry_after` is in seconds."""

    def __init__(self, name: str, retry_after: float) -> None:
        super().__init__(f"{name} is not called for another {retry_after:.1f} s: it failed too often")
        self.retry_after = retry_after
