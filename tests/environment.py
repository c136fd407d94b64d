"""The environment of the tests, set when this is imported: what surrounds them must not decide
whether they pass.
"""

import os
import re

# What a terminal, a CI service, a launcher or a SLURM job sets for the processes below it.
_FOREIGN = re.compile(
    r"(NO|FORCE)_COLOR|PY_COLORS|CLICOLOR(_FORCE)?|GITHUB_ACTIONS|COLUMNS|LINES|TTY_\w+"
    r"|(ACCELERATE|SLURM|TORCHELASTIC|DISTILL)_\w+|((LOCAL|GROUP)_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)"
)
for _name in [name for name in os.environ if _FOREIGN.fullmatch(name)]:
    del os.environ[_name]
os.umask(0o022)

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when huggingface_hub is imported
# Tests are many small operations, often beside other processes: two threads that wait for each
# other took nine times as long.
os.environ["OMP_NUM_THREADS"] = "1"
