"""What the tests of fedef share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the LIBSVM files: FEDEF_DATA, else ../shared/data beside the repository."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get("FEDEF_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no data folder {folder}; set FEDEF_DATA")
    return folder
