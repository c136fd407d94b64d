"""Writing the launch files that come with the package: SLURM, torchrun, Accelerate, Kubernetes."""

from importlib import resources
from pathlib import Path

from distill.errors import InputError


def launchers_dir() -> Path:
    """The launch files that come with the package: beside it in a checkout, inside it when
    installed.
    """
    inside = Path(str(resources.files("distill"))) / "_launchers"
    return inside if inside.is_dir() else Path(__file__).resolve().parents[2] / "launchers"


def write_launchers(folder: Path) -> list[Path]:
    """Copy the launch files into a folder, which is made if it is not there; scripts may be
    executed.

    Returns:
        What was written, sorted.

    Raises:
        InputError: one of them is there already, or the folder cannot be made; then nothing is
            written.
    """
    source = launchers_dir()
    names = sorted(
        path.relative_to(source)
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    )
    targets = {name: folder / name for name in names}
    if there := [target for target in targets.values() if target.exists()]:
        raise InputError(
            f"{there[0]}: is there already, and nothing is overwritten: name another folder"
        )
    for name, target in targets.items():
        content = (source / name).read_bytes()
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        except OSError as error:
            raise InputError(
                f"{target}: cannot be written: {error.strerror or error}; name another folder"
            ) from error
        # By the first line rather than by the mode: not every installer keeps modes.
        target.chmod(0o755 if content.startswith(b"#!") else 0o644)
    return list(targets.values())
