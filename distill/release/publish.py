"""Publish a model on the Hugging Face Hub: check all that can be checked here, make one commit, and
load the model back from it.
"""

import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import timm
import torch

from distill.checkpoint.layout import CURVES_FILE
from distill.console import make_console
from distill.errors import InputError
from distill.files import sha256_of
from distill.models.export_format import RECORD_FILE, WEIGHTS_FILE, data_config
from distill.models.hub.card import CARD_FILE, LICENCE_FILE, CardFacts, model_card
from distill.models.hub.commit import (
    Head,
    Target,
    Uploaded,
    connect,
    look_at,
    upload,
    without_progress_bars,
)
from distill.models.hub.derived import base_model, datasets_of, noted_licences
from distill.models.hub.faults import read_fault
from distill.models.hub.figures import own_score, read_scores
from distill.models.hub.licences import (
    OTHER,
    Noted,
    check_licence,
    licence_text,
    require_licence,
)
from distill.models.hub.published_files import LIST_FILE, list_files, written_before
from distill.models.hub.secrets import refuse_secrets
from distill.models.origin import CONFIG_FILE
from distill.recipe.hub_names import (
    HubModel,
    check_branch,
    check_repo_name,
    is_hub_name,
    parse_hub_name,
)
from distill.release.find import which_weights
from distill.release.publishable import RUN_FILES, Publishable, find_publishable

# What a later publication may delete or replace.
_LISTED = (*RUN_FILES, RECORD_FILE, CARD_FILE)
_PICTURES = (".png", ".svg", ".jpg", ".webp")


@dataclass(frozen=True)
class Published:
    """A published model. commit: None after a dry run."""

    repo: str
    commit: str | None
    url: str | None
    files: tuple[str, ...]


def publish_model(
    source: str | Path,
    repo: str,
    *,
    student: str | None = None,
    weights: str = "best",
    private: bool = False,
    branch: str | None = None,
    pull_request: bool = False,
    licence: str | None = None,
    licence_file: str | Path | None = None,
    evaluation: str | Path | None = None,
    curves: str | Path | None = None,
    message: str | None = None,
    dry_run: bool = False,
    ask: Callable[[Sequence[Noted]], str] | None = None,
) -> Published:
    """Publishes a model on the Hub in one commit: weights, config.json, a model card, and of a run
    its recipe, metrics and report. Other files of the repository stay, except recipe, metrics and
    report of a model that was published there before, as distill-files.json lists them.

    Args:
        source: the folder of a finished run, or of an export.
        repo: OWNER/NAME, or hf://OWNER/NAME[@BRANCH]; made if it does not exist.
        student: of a run; None for the best one.
        weights: of a run: "best"; or from its newest checkpoint "raw" or an average, "ema-0.999".
        private: of a repository that is made for this.
        branch: to commit to; made from main if it does not exist.
        pull_request: propose the commit instead of making it.
        licence: an id of the Hub, such as mit.
        licence_file: the text of the licence, for the file LICENSE.
        evaluation: a file of `distill evaluate --json` for these weights.
        curves: a picture of the training curves.
        message: of the commit.
        dry_run: print the files and the card, and ask the Hub nothing.
        ask: asks the user for a licence if none is given, with the licences of what the model
            derives from.

    Returns:
        The commit, after the model was loaded back from it with the same logits.

    Raises:
        InputError: something is missing or does not fit, or the Hub refuses; the repository is then
            as before.
    """
    repo, branch = _repo_and_branch(repo, branch)
    if branch is not None:
        check_branch(branch, "--revision")
    if branch is not None and pull_request:
        raise InputError("--revision and --pull-request: a pull request is for main: give one")
    if message is not None:
        refuse_secrets({"--message": message.encode(errors="replace")})
    with tempfile.TemporaryDirectory(prefix="distill-publish-") as temporary:
        model = find_publishable(
            Path(source), student=student, weights=weights, folder=Path(temporary, "export")
        )
        noted = noted_licences(
            model.found.record, model.teachers, model.recipe, model.found.classes
        )
        licence = _chosen(licence, licence_file, noted, dry_run, ask)
        files = _files(model, repo, licence, licence_file, noted, evaluation, curves)
        console = make_console()
        for note in model.notes:
            console.print(note, markup=False, soft_wrap=True)
        if dry_run:
            _show_plan(model, repo, files)
            return Published(repo, None, None, tuple(files))
        target = Target(repo, branch, pull_request, private)
        title = message or _message(model)
        with nullcontext() if sys.stderr.isatty() else without_progress_bars():
            head = look_at(target)
            before = written_before(target, head, _LISTED)
            delete = sorted(name for name, ours in before.items() if ours and name not in files)
            made = upload(target, head, files, title, delete=delete)
            _load_back(model, target, made)
        notes = []
        if delete:
            notes.append(f"deleted there, of an earlier publication: {', '.join(delete)}")
        if made.is_new and not pull_request and not before.get(CARD_FILE, True):
            place = f"{connect().endpoint}/{repo}/blob/{head.commit}/{CARD_FILE}"
            notes.append(
                f"{CARD_FILE} there was not written by this command; the earlier one: {place}"
            )
        for note in notes:
            console.print(note, markup=False, soft_wrap=True)
        _show(model, target, head, made, files)
    return Published(repo, made.commit, made.pull_request or made.url, tuple(files))


def _repo_and_branch(name: str, branch: str | None) -> tuple[str, str | None]:
    """Return the repository and the branch that the user names."""
    if not is_hub_name(name):
        check_repo_name(name, name)
        return name, branch
    model = parse_hub_name(name)
    if model.revision is None:
        return model.repo, branch
    if model.is_pinned:
        raise InputError(f"{model}: is a commit, and what is published to is a branch: name one")
    if branch not in (None, model.revision):
        raise InputError(f"{model} and --revision {branch}: are two branches: give one")
    return model.repo, model.revision


def _chosen(
    licence: str | None,
    licence_file: str | Path | None,
    noted: Sequence[Noted],
    dry_run: bool,
    ask: Callable[[Sequence[Noted]], str] | None,
) -> str | None:
    """Return the licence that the user chooses; None only in a dry run.

    Raises:
        InputError: none is chosen, or the choice is not complete.
    """
    if licence is None and not dry_run:
        if ask is None or any(each.needs_choice for each in noted):
            raise require_licence(noted, "--license")
        licence = ask(noted).strip()
        if not licence:
            raise require_licence(noted, "--license")
    if licence is not None:
        check_licence(licence, "--license")
    if licence == OTHER and licence_file is None:
        raise InputError("--license other: give its text with --license-file FILE")
    if licence_file is not None and not Path(licence_file).is_file():
        raise InputError(f"--license-file {licence_file}: there is no such file")
    return licence


def _files(
    model: Publishable,
    repo: str,
    licence: str | None,
    licence_file: str | Path | None,
    noted: Sequence[Noted],
    evaluation: str | Path | None,
    curves: str | Path | None,
) -> dict[str, Path | bytes]:
    """Return everything that the commit contains, by its name in the repository.

    Raises:
        InputError: the evaluation is of other weights, or a file holds a token.
    """
    sha256 = sha256_of(model.folder / WEIGHTS_FILE)
    files: dict[str, Path | bytes] = {
        WEIGHTS_FILE: model.folder / WEIGHTS_FILE,
        CONFIG_FILE: model.folder / CONFIG_FILE,
        **model.files,
    }
    if model.found.record and (model.folder / RECORD_FILE).is_file():
        files[RECORD_FILE] = model.folder / RECORD_FILE
    picture = None
    if curves is None and CURVES_FILE in files:
        picture = CURVES_FILE
    elif curves is not None:
        path = Path(curves)
        if not path.is_file() or path.suffix.lower() not in _PICTURES:
            raise InputError(f"--curves {path}: should be a picture ({', '.join(_PICTURES)})")
        picture = f"curves{path.suffix.lower()}"
        files[picture] = path
    if licence_file is not None:
        files[LICENCE_FILE] = Path(licence_file)
    elif licence is not None:
        files[LICENCE_FILE] = licence_text(licence, repo.split("/")[0]).encode()
    scores = read_scores(Path(evaluation), sha256) if evaluation is not None else []
    own = own_score(model.found.record)
    facts = CardFacts(
        repo=repo,
        architecture=str(model.config["architecture"]),
        parameters=sum(each.numel() for each in model.found.net.parameters()),
        classes=model.found.classes,
        num_classes=int(model.found.net.num_classes),  # type: ignore[arg-type]
        view=data_config(model.found.view),
        record=model.found.record,
        weights_sha256=sha256,
        licence=licence,
        noted=noted,
        scores=[*scores, *([own] if own else [])],
        recipe=model.recipe,
        student=model.student,
        report=model.report,
        base_model=base_model(str(model.found.record.get("began_with", ""))),
        datasets=datasets_of(model.recipe),
        curves=picture,
    )
    files[CARD_FILE] = model_card(facts).encode()
    files[LIST_FILE] = list_files(files, _LISTED)
    refuse_secrets(files)
    return files


def _message(model: Publishable) -> str:
    name = model.found.record.get("student", model.found.name)
    top1 = model.found.record.get("top1")
    score = "" if top1 is None else f", top-1 {top1:.2f} %"
    which = which_weights(model.found)
    return f"{name}: {which or 'weights'}{score}"


def _load_back(model: Publishable, target: Target, made: Uploaded) -> None:
    """Load the model from the commit, through timm and past every cache, and compare its logits.

    Raises:
        InputError: it cannot be read, or its logits differ in a bit.
    """
    name = HubModel(target.repo, made.commit)
    with tempfile.TemporaryDirectory(prefix="distill-check-") as cache:
        try:
            net = timm.create_model(
                f"hf-hub:{target.repo}@{made.commit}", pretrained=True, cache_dir=cache
            )
        except Exception as error:  # of timm, huggingface_hub and its HTTP library
            fault = read_fault(error, name, "published, but not checked")
            raise InputError(f"{fault}; the same command checks it") from error
        if not torch.equal(model.logits(net), model.logits()):
            raise InputError(
                f"{name}: was published, and its logits differ from those of {model.folder}: do not"
                " use it; please report this"
            )


def _show_plan(model: Publishable, repo: str, files: dict[str, Path | bytes]) -> None:
    console = make_console()

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    say(f"{repo}: would be one commit, {_message(model)!r}, of")
    for name, content in files.items():
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        say(f"  {name:<20} {size:>12,} bytes")
    say(f"{CARD_FILE}:\n")
    card = files[CARD_FILE]
    assert isinstance(card, bytes)
    say(card.decode())


def _show(
    model: Publishable, target: Target, head: Head, made: Uploaded, files: dict[str, Path | bytes]
) -> None:
    console = make_console()
    what = f"{len(files)} files" if made.is_new else "nothing new"
    made_repo = "" if head.exists else ("private " if target.private else "") + "new repository, "
    place = made.pull_request or made.url
    own = "import distill.models; " if model.config["architecture"].startswith("cifar_") else ""
    name = HubModel(target.repo, made.commit if target.pull_request else target.branch)
    to_load = str(name).replace("hf://", "hf-hub:")
    for line in (
        f"{target.repo}: {made_repo}{what} in commit {made.commit[:12]}, {place}",
        "loaded back from there: the logits are the same, bit for bit",
        f"load it: python -c \"{own}import timm; timm.create_model('{to_load}', pretrained=True)\"",
    ):
        console.print(line, markup=False, soft_wrap=True)
