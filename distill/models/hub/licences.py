"""Licences: the ids that the Hub knows, which of them leave the choice open, and the texts.

Weights that learned from a teacher, or began with published weights, may be bound by the licence of
these. What holds is a question of law, which this package does not answer: it shows what is known
and asks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from distill.errors import InputError, did_you_mean, printable

# Licences that put no limit on the use of what is derived.
_PERMISSIVE = frozenset(
    {
        "afl-3.0",
        "apache-2.0",
        "bsd",
        "bsd-2-clause",
        "bsd-3-clause",
        "bsl-1.0",
        "cc-by-2.0",
        "cc-by-3.0",
        "cc-by-4.0",
        "cc0-1.0",
        "cdla-permissive-1.0",
        "cdla-permissive-2.0",
        "isc",
        "mit",
        "ncsa",
        "odc-by",
        "pddl",
        "postgresql",
        "unlicense",
        "wtfpl",
        "zlib",
    }
)
# The ids that the Hub accepts besides.
_OTHERS = frozenset(
    """
    agpl-3.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
    bigscience-openrail-m bsd-3-clause-clear c-uda cc cc-by-2.5 cc-by-nc-2.0 cc-by-nc-3.0
    cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0
    cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cdla-sharing-1.0 creativeml-openrail-m
    deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2
    fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 h-research intel-research
    lgpl lgpl-2.1 lgpl-3.0 lgpl-lr lppl-1.3c mpl-2.0 ms-pl odbl ofl-1.1 openmdw-1.0 openrail
    openrail++ osl-3.0 other unknown
    """.split()  # noqa: SIM905 - a list would be 60 lines
)
KNOWN = _PERMISSIVE | _OTHERS
OTHER = "other"
UNREADABLE = "not readable"
"""In place of a licence that is stated and cannot be read: it demands a choice."""
_LINKS = {
    "cc0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/legalcode",
    **{
        name: f"https://creativecommons.org/licenses/{name[3:].rpartition('-')[0]}"
        f"/{name.rpartition('-')[2]}/legalcode"
        for name in KNOWN
        if name.startswith("cc-by-")
    },
}
_WITH_TEXT = ("apache-2.0", "mit")


@dataclass(frozen=True)
class Noted:
    """The licence of something that a model derives from.

    Attributes:
        what: in words: "teacher beitv2_base_patch16_224".
        licence: its id or name; None if nothing states it.
        note: what else is known, a sentence; empty if nothing.
    """

    what: str
    licence: str | None
    note: str = ""

    @property
    def needs_choice(self) -> bool:
        """Whether it may limit the licence of what derives from it."""
        return self.licence is not None and self.licence not in _PERMISSIVE

    def describe(self) -> str:
        """Return it in a line."""
        licence = "licence unknown" if self.licence is None else self.licence
        return f"{self.what}: {licence}{f' ({self.note})' if self.note else ''}"


def strictest(licences: Sequence[str]) -> str:
    """Return the first licence that is not known to be permissive, else the first."""
    return next((each for each in licences if each not in _PERMISSIVE), licences[0])


def noted_weights(what: str, model: str, licence: str | None) -> Noted:
    """Return the licence of weights, with what is known to be wrong in timm's entry for them.

    Args:
        what: "teacher" or another word for their part.
        model: their name; timm's, if the weights are timm's.
    """
    architecture = model.removeprefix("pretrained ")
    note = ""
    if architecture.startswith("beit") and licence == "apache-2.0":
        note = "timm's entry; unilm, which published these weights, is under mit"
    return Noted(f"{what} {model}", licence, note)


def check_licence(licence: str, key: str) -> None:
    """Check an id.

    Raises:
        InputError: the Hub does not know it.
    """
    if licence not in KNOWN:
        raise InputError(
            f"{key} {printable(licence)}: the Hub does not know this id"
            f"{did_you_mean(licence, KNOWN)}: use an id such as mit, apache-2.0 or cc-by-nc-4.0, or"
            " other with a file of its text"
        )


def require_licence(noted: Sequence[Noted], key: str) -> InputError:
    """Return the message for a missing choice of licence."""
    lines = [f"  {each.describe()}" for each in noted]
    return InputError(
        "\n".join(
            [
                f"{key}: missing: a licence is chosen, never assumed; the model derives from",
                *(lines or ["  nothing whose licence is known"]),
                f"choose one that these allow, as in {key} mit",
            ]
        )
    )


def licence_text(licence: str, holder: str) -> str:
    """Return the content of the file LICENSE.

    Args:
        holder: of the copyright.
    """
    if licence in _WITH_TEXT:
        folder = resources.files("distill.models.hub") / "texts"
        return (folder / f"{licence}.txt").read_text(encoding="utf-8").replace("HOLDER", holder)
    text = _LINKS.get(licence, f"https://spdx.org/licenses/, under the name {licence}")
    return (
        f"Copyright (c) {holder}\n\nThe weights in this repository are under the licence"
        f" {licence}.\nIts full text: {text}\n"
    )
