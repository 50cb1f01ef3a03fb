"""Errors at fedef's boundaries. Each message says what, got, allowed, way out."""


class FedefError(Exception):
    """Root of every error that fedef raises on purpose."""


class ConfigError(FedefError, ValueError):
    """A setting, a file or an argument is wrong; the message names the way out."""


class CorruptPayload(FedefError, ValueError):  # noqa: N818 - the design's name, as in `StateMismatch`
    """Bytes that are not a canonical fedef payload."""


class StateMismatch(FedefError, RuntimeError):  # noqa: N818 - names a condition
    """Server and client disagree about the client's error-feedback state."""
