"""Names of timm's augmentation policies: the numbers in them, which timm takes as they come."""

import re

# Section -> its largest number. More layers than operations make an image take minutes, and timm
# clips magnitudes at 10 unless mmax says otherwise.
_LARGEST = {
    "m": 30,
    "mmax": 30,
    "mstd": 1000,
    "n": 16,
    "p": 1,
    "inc": 1,
    "w": 16,
    "d": 16,
    "a": 1000,
    "b": 1,
}


def checked_policy(policy: str) -> str:
    """The policy, where no number in it is beyond what an image survives.

    Raises:
        ValueError: one is; names its section.
    """
    for section in policy.split("-")[1:]:
        match = re.fullmatch(r"([a-z]+)(\d[\d.]*)", section)
        largest = _LARGEST.get(match[1]) if match else None
        if match is None or largest is None:
            continue  # whether timm knows it is seen where the policy is made
        digits = match[2]
        if len(digits) > 12 or digits.count(".") > 1 or float(digits) > largest:
            raise ValueError(
                f"section {section!r} of {policy!r}: {match[1]} should be a number of at most"
                f" {largest}"
            )
    return policy
