"""What tests of Flower's sides in one process share."""

import pytest
from local_grid import enter_flower


@pytest.fixture
def inside_flower():
    enter_flower()
