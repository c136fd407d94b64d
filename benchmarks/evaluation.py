"""`distill evaluate` against timm's validate.py: the same weights, images and cores, as whole
processes that take turns.

    python -m benchmarks.evaluation --validate validate.py --model tf_efficientnet_lite2 \
        --weights lite2.safetensors --data val --rounds 3

validate.py is a file of timm's repository, not of its package; the folder has class folders named
by WordNet's ids. It runs as it does by default, and with --channels-last, which is the faster of
the two on CPUs. All must find the same top-1.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.timing import common_arguments, finish, interleaved, ratio, show
from distill.release.imagenet import imagenet_classes


def timed(command: list[str], top1: Callable[[str], float], found: dict[str, float]) -> float:
    """Run a command and return its seconds; its top-1 is noted under its program."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    found[" ".join(command[1:4])] = top1(done.stdout)
    return seconds


def main() -> None:
    """Print the ratio of speeds."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--validate", type=Path, required=True, help="timm's validate.py")
    parser.add_argument("--model", required=True, help="timm name")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder a class")
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--workers", type=int, default=2)
    common_arguments(parser, rounds=3)
    options = parser.parse_args()
    count = sum(1 for path in options.data.rglob("*") if path.is_file())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        classes = Path(folder, "classes.txt")
        classes.write_text("\n".join(imagenet_classes()))
        scores = Path(folder, "scores.json")

        def ours(_: str) -> float:
            (of_set,) = json.loads(scores.read_text())["sets"].values()
            (score,) = of_set["models"].values()
            return float(score["top1"])

        def theirs(text: str) -> float:
            match = re.search(r'"top1": ([\d.]+)', text)
            assert match, text[-500:]
            return float(match[1])

        shared = ["--batch-size", str(options.batch_size)]
        timm_command = [
            *[sys.executable, str(options.validate), "--model", options.model],
            *["--checkpoint", str(options.weights), "--data-dir", str(options.data)],
            *["--class-map", str(classes), "-j", str(options.workers), "--device", device],
            *shared,
        ]
        our_command = [
            *[sys.executable, "-m", "distill", "evaluate", str(options.weights)],
            *["--model", options.model, "--sets", f"val={options.data}"],
            *["--num-workers", str(options.workers), "--json", str(scores)],
            *shared,
        ]
        seconds = interleaved(
            {
                "distill evaluate": lambda: timed(our_command, ours, found),
                "validate.py": lambda: timed(timm_command, theirs, found),
                "validate.py --channels-last": lambda: timed(
                    [*timm_command, "--channels-last"], theirs, found
                ),
            },
            options.rounds,
        )
    if len(set(found.values())) != 1:
        raise SystemExit(f"they find different accuracies: {found}")
    print(f"{count} images, top-1 {next(iter(found.values())):.3f} % for each")
    figures = {}
    for name, own in seconds.items():
        against = ratio(own, seconds["distill evaluate"])
        print(f"{name:30} {count / min(own):7.1f} images/s at best; takes {show(against)} of ours")
        figures[name] = {"seconds": own, "ratio_of_times": against}
    finish("evaluation", options, torch.device(device), figures)


if __name__ == "__main__":
    main()
