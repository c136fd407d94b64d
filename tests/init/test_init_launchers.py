"""Launch files travel in the wheel, and distill launchers writes them as they are in the
repository.
"""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from command import Cli

REPOSITORY = Path(__file__).resolve().parents[2]
LAUNCHERS = sorted(
    path.relative_to(REPOSITORY / "launchers") for path in (REPOSITORY / "launchers").rglob("*.*")
)
FILES = [
    name
    for name in LAUNCHERS
    if (REPOSITORY / "launchers" / name).is_file() and "__pycache__" not in name.parts
]


def test_they_are_written_with_their_bits_and_nothing_is_overwritten(
    cli: Cli, tmp_path: Path
) -> None:
    assert cli("launchers", tmp_path / "mine").code == 0
    written = sorted(
        path.relative_to(tmp_path / "mine")
        for path in (tmp_path / "mine").rglob("*")
        if path.is_file()
    )
    assert written == FILES
    for name in FILES:
        content = (REPOSITORY / "launchers" / name).read_bytes()
        assert (tmp_path / "mine" / name).read_bytes() == content
        assert os.access(tmp_path / "mine" / name, os.X_OK) is content.startswith(b"#!")
    (tmp_path / "mine/torchrun.sh").write_text("my own")
    again = cli("launchers", tmp_path / "mine")
    assert (again.code, "exists already" in again.err) == (2, True)
    assert (tmp_path / "mine/torchrun.sh").read_text() == "my own"
    (tmp_path / "file").touch()
    assert cli("launchers", tmp_path / "file").code == 2


def test_the_wheel_holds_launchers_and_recipes(tmp_path: Path) -> None:
    build = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("distill", "recipes", "launchers", "pyproject.toml", "README.md", "LICENSE"):
        (copy / name).symlink_to(REPOSITORY / name)
    ran = subprocess.run(
        [sys.executable, "-c", build], cwd=copy, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    with zipfile.ZipFile(copy / ran.stdout.split()[-1]) as wheel:
        names = set(wheel.namelist())
        assert {f"distill/_launchers/{name.as_posix()}" for name in FILES} <= names
        assert "distill/_recipes/quickstart/students.yaml" in names
        wheel.extractall(tmp_path / "site")
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; import"
        " distill.init.launchers as it; "
    )
    script += "assert it.__file__.startswith(sys.argv[1]); it.write_launchers(Path(sys.argv[2]))"
    subprocess.run(
        [sys.executable, "-I", "-c", script, tmp_path / "site", tmp_path / "out"], check=True
    )
    assert (tmp_path / "out/slurm/rank.py").read_bytes() == (
        REPOSITORY / "launchers/slurm/rank.py"
    ).read_bytes()
