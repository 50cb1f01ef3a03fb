"""What the models of settings share: spelling, 'not set', and one line about a wrong value."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


def kebab(name: str) -> str:
    """A field's name as a key."""
    return name.replace("_", "-")


def unset(value: object) -> object:
    """Flower cannot carry None: an empty string stands for 'not set'."""
    return None if value == "" else value


def explain(model: type[BaseModel], item: Any) -> str:
    """One line about one invalid value: what, allowed, got."""
    key = str(item["loc"][0])
    field = model.model_fields.get(key.replace("-", "_"))
    what = f" ({field.description})" if field is not None and field.description else ""
    reason = str(item["msg"])
    return f"{key}: {reason[:1].lower()}{reason[1:]}, got {item['input']!r}{what}"
