"""Checks the numbers in the names of timm's augmentation policies, which timm does not check."""

import re

# Section -> its largest number. With more layers than operations an image takes minutes; timm clips
# magnitudes at 10 unless mmax is set.
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
    """Returns the policy.

    Raises:
        ValueError: a number in it is too large; the message names its section.
    """
    for section in policy.split("-")[1:]:
        match = re.fullmatch(r"([a-z]+)(\d[\d.]*)", section)
        largest = _LARGEST.get(match[1]) if match else None
        if match is None or largest is None:
            continue  # timm checks the name when the policy is built
        digits = match[2]
        if len(digits) > 12 or digits.count(".") > 1 or float(digits) > largest:
            raise ValueError(
                f"section {section!r} of {policy!r}: {match[1]} should be a number of at most"
                f" {largest}"
            )
    return policy
