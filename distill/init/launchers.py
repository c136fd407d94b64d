"""Writes the launch files of the package: SLURM, torchrun, Accelerate, Kubernetes."""

from importlib import resources
from pathlib import Path

from distill.errors import InputError


def launchers_dir() -> Path:
    """The folder of the launch files: in the package if installed, else in the checkout."""
    inside = Path(str(resources.files("distill"))) / "_launchers"
    return inside if inside.is_dir() else Path(__file__).resolve().parents[2] / "launchers"


def write_launchers(folder: Path) -> list[Path]:
    """Copies the launch files to a folder, which is created if necessary. Scripts are executable.

    Returns:
        The written files, sorted.

    Raises:
        InputError: one of them exists already, and nothing was written; or it cannot be written.
    """
    source = launchers_dir()
    names = sorted(
        path.relative_to(source)
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    )
    targets = {name: folder / name for name in names}
    if existing := [target for target in targets.values() if target.exists()]:
        raise InputError(
            f"{existing[0]}: exists already, and nothing is overwritten: use another folder"
        )
    for name, target in targets.items():
        content = (source / name).read_bytes()
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        except OSError as error:
            raise InputError(
                f"{target}: cannot be written: {error.strerror or error}; use another folder"
            ) from error
        # By the first line instead of the mode: not every installer keeps modes.
        target.chmod(0o755 if content.startswith(b"#!") else 0o644)
    return list(targets.values())
