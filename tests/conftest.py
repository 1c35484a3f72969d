"""What holds for all tests."""

import os

from hypothesis import settings

# Machines that run tests are slow and shared: an example that takes long says nothing about the code.
settings.register_profile("shared machine", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("shared machine")

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side
