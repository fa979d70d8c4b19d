"""Processes that tests start."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def environment(**variables):
    """Return the environment in which a process finds what this one imports, and ``tests``, wherever pytest began."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]), **variables}
