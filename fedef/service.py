"""How a run is served: folders, checkpoints, patience, policies.

None of it decides the bits of a run in which nobody fails.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from fedef.errors import ConfigError
from fedef.keys import explain, kebab, unset
from fedef.members import Policies

_OptionalText = Annotated[str | None, BeforeValidator(unset)]


class Service(BaseModel):
    """The keys of a Flower run config that `Config` does not have."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=kebab,
        populate_by_name=True,
        allow_inf_nan=False,
    )

    out: _OptionalText = Field(None, description="the run's folder; not set: a new one in runs/")
    resume: _OptionalText = Field(
        None, description="folder of a run to go on with, which `out` must not name otherwise"
    )
    min_clients: Annotated[int, Field(ge=0)] = Field(
        0, description="clients that must be there at the start, others may join; 0: all"
    )
    min_replies: Annotated[float, Field(ge=0)] = Field(
        0.0, description="updates that a round needs: a share of those asked below 1, else a count"
    )
    on_few_replies: Literal["go-on", "stop"] = Field(
        "go-on", description="about a round with fewer: go on and say so, or end the run"
    )
    round_timeout: Annotated[float, Field(gt=0)] = Field(
        3600.0, description="seconds after which a round closes without those that did not reply"
    )
    server_checkpoint_every: Annotated[int, Field(ge=0)] = Field(
        1,
        description="rounds between the server's checkpoints, with a journal of those in between; "
        "0: neither, so no resume",
    )
    on_lost_state: Literal[
        "stop", "evict-by-reset", "dense-resync", "evict-by-mirror", "hand-back"
    ] = Field(
        "stop",
        description="about a client that lost its state: stop; all start again at g_i = 0, or with "
        "a dense message; or by a mirror of every g_i (n d values on the server's disk): that "
        "client starts again, or gets its g_i back",
    )
    max_refusals: Annotated[int, Field(ge=0)] = Field(
        10,
        description="refused replies of a client in a row, or lost states in all, after which it "
        "is not asked any more; 0: no limit",
    )
    state_dir: _OptionalText = Field(
        None,
        description="folder on a node where its clients keep their state; the node's own config "
        "goes before; not set: in Flower's memory, lost when the node restarts",
    )

    @property
    def policies(self) -> Policies:
        """What the server does about clients that fail or lie."""
        return Policies(self.on_lost_state, self.max_refusals)

    @classmethod
    def known_keys(cls) -> frozenset[str]:
        """All keys in kebab-case."""
        return frozenset(kebab(name) for name in cls.model_fields)

    @classmethod
    def from_run_config(cls, run_config: Mapping[str, Any]) -> Self:
        """Service keys among all the keys of a Flower run config.

        Raises
        ------
        ConfigError
            For a value out of range.
        """
        own = {key: value for key, value in run_config.items() if key in cls.known_keys()}
        try:
            return cls.model_validate(own)
        except ValidationError as error:
            raise ConfigError("; ".join(explain(cls, item) for item in error.errors())) from None

    def to_flat(self) -> dict[str, bool | int | float | str]:
        """The same as plain values under kebab-case keys; '' stands for not set."""
        return {
            key: "" if value is None else value
            for key, value in self.model_dump(by_alias=True).items()
        }


def absolute_folder(key: str, value: str) -> Path:
    """Folder that a process in any working directory finds.

    Raises
    ------
    ConfigError
        If the path is relative: Flower's processes run in folders of their own.
    """
    path = Path(value).expanduser()
    if not path.is_absolute():
        raise ConfigError(f"{key}: must be an absolute path, got {value!r}")
    return path
