"""A guard for our generic package names: `clients`, `strategies` and `sims` may be anybody's."""

from importlib.util import find_spec
from pathlib import Path

from fedef.errors import ConfigError

PACKAGES = ("fedef", "clients", "strategies", "sims")


def ensure_ours() -> None:
    """Check that the four packages stand side by side, as in a checkout, a bundle and the wheel.

    Raises
    ------
    ConfigError
        If a name resolves to somebody else's package or to none.
    """
    home = Path(__file__).resolve().parent.parent
    for name in PACKAGES:
        spec = find_spec(name)
        found = Path(spec.origin).resolve().parent if spec and spec.origin else None
        if found != home / name:
            raise ConfigError(
                f"package {name!r} resolves to {found or 'nothing'}, expected {home / name}; "
                "another distribution or a folder of the working directory has the same name: "
                "use an environment of its own for fedef, and start it elsewhere"
            )
