import sys
from pathlib import Path

import pytest

from tests.client.fake_swarm import FakeModel, make_model


@pytest.fixture
def model(tmp_path: Path) -> FakeModel:
    return make_model(tmp_path / "model")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """For a program of its own: a fresh cache, no user's settings."""
    return {"PATH": str(Path(sys.executable).parent), "XDG_CACHE_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path)}
