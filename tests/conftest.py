"""What all tests share: the data folder, and hypothesis draws without a clock."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples on every machine.
settings.register_profile("fedef", derandomize=True, deadline=None, max_examples=100)
settings.load_profile("fedef")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the data files: FEDEF_DATA, else ../shared/data beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("FEDEF_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no data folder {folder}; set FEDEF_DATA")
    return folder
