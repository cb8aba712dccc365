"""Random histories shared with tests/unit/features."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def stories() -> ModuleType:
    """The module histories.py: History, Payment, Change, MemoryRecords and the strategies."""
    path = Path(__file__).parents[1] / "unit" / "features" / "histories.py"
    spec = importlib.util.spec_from_file_location("ringfence_parity_histories", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
