"""What is built is what runs: the wheel works from a folder that knows nothing of the checkout."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from graph_features.catalog import catalog

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(site: Path, cwd: Path, code: str) -> str:
    # -I keeps the checkout and its editable install out; the site folder comes first.
    code = f"import sys; sys.path.insert(0, {str(site)!r})\n{code}"
    result = subprocess.run([sys.executable, "-I", "-c", code], cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_command_line_runs_from_the_wheel(unpacked: Path, tmp_path: Path) -> None:
    """`ringfence --help` answers from another directory, from the wheel's own files."""
    code = "import infra.cli; print(infra.cli.__file__); sys.argv = ['ringfence', '--help']; infra.cli.main()"
    output = run(unpacked, tmp_path, code)
    assert str(unpacked) in output.splitlines()[0]
    assert "backfill" in output


def test_the_wheel_carries_its_data_files(unpacked: Path) -> None:
    """Queries, Feast configurations and pinned server files are packed."""
    names = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    wanted = {
        "graph_features/sources/queries.sql",
        "graph_features/sources/queries.cypher",
        "feature_repo/feature_store.yaml",
        "feature_repo/feature_store.services.yaml",
        "infra/compose.yaml",
    }
    assert wanted <= names


def test_the_catalogue_loads_from_the_wheel(unpacked: Path, tmp_path: Path) -> None:
    """Feature functions, whose source is hashed, are found outside the checkout, and are the same there."""
    code = "from graph_features.catalog import catalog; print(*(view.code_hash for view in catalog().schemas.values()))"
    hashes = run(unpacked, tmp_path, code).split()
    assert hashes == [view.code_hash for view in catalog().schemas.values()]
    assert len(set(hashes)) == len(hashes)
