"""What every theorem refuses."""

from math import isfinite

from fedef.errors import ConfigError


def require_positive(symbol: str, value: float) -> None:
    """Refuse what is not positive and finite."""
    if not (value > 0 and isfinite(value)):
        raise ConfigError(
            f"theory: {symbol} must be positive and finite, got {value}; "
            "use schedule=constant or inv-sqrt where it is unknown"
        )


def require_not_negative(symbol: str, value: float) -> None:
    """Refuse what is negative, infinite or not a number."""
    if not (value >= 0 and isfinite(value)):
        raise ConfigError(
            f"theory: {symbol} must be finite and not negative, got {value}; "
            "0 is allowed where the quantity vanishes"
        )


def require_probability(symbol: str, value: float) -> None:
    """Refuse what is outside (0, 1]."""
    if not 0 < value <= 1:
        raise ConfigError(f"theory: {symbol} must be in (0, 1], got {value}; 1 is everybody")


def require_count(symbol: str, value: int, *, least: int) -> None:
    """Refuse a count below `least`."""
    if value < least:
        raise ConfigError(f"theory: {symbol} must be at least {least}, got {value}")


def require_at_most(symbol: str, value: float, limit: float, theorem: str) -> None:
    """Refuse a step that is larger than the theorem allows, up to rounding."""
    if value > limit * (1 + 1e-12):
        raise ConfigError(
            f"theory: {theorem} needs {symbol} <= {limit:.6g}, got {value:.6g}; "
            "it says nothing about larger steps"
        )
