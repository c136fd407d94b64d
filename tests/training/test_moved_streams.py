"""A run over shards resumes wherever the same shards are, in the same order; over others, or in
another order, it is refused.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import yaml
from servers import FolderServer
from shards import describe, images_of, write_tars
from tiny import assert_same_run, checkpoint, run, stop_after, write_recipe

from distill.checkpoint.differences import another_recipe
from distill.data.fashion import EmbeddedFashionMnist
from distill.data.order.lanes import LaneOrder
from distill.data.sources import open_source
from distill.data.stream.source import StreamSource
from distill.errors import InputError
from distill.recipe import dump_recipe, load_recipe, recipe_fingerprint
from distill.recipe.schema import StreamSpec
from distill.training.inputs import refuse_other_inputs
from distill.training.loop import DONE, INTERRUPTED
from distill.training.plan import make_plan

SOURCE = EmbeddedFashionMnist("train")


def write_set(folder: Path, first: int = 0, per_shard: int = 25, *, manifest: bool = True) -> Path:
    """100 labelled images from the `first` on, every 7th, in tar shards."""
    chosen = range(first, first + 700, 7)
    write_tars(
        folder, images_of(SOURCE, chosen), per_shard, labels=SOURCE.labels[list(chosen)].tolist()
    )
    if manifest:
        describe(folder, SOURCE.classes)
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`a`; `copy` of it; `other`, of the same names and counts; `longer`, of other counts; `bare`
    and `bare-other`: the first and the third without manifests.
    """
    folder = tmp_path_factory.mktemp("sets")
    copytree(write_set(folder / "a"), folder / "copy")
    write_set(folder / "other", 3)
    write_set(folder / "longer", per_shard=34)
    write_set(folder / "bare", manifest=False)
    write_set(folder / "bare-other", 3, manifest=False)
    return folder


@pytest.fixture(scope="module")
def servers(sets: Path) -> Iterator[tuple[FolderServer, FolderServer]]:
    with FolderServer(sets) as one, FolderServer(sets) as another:
        yield one, another


def over(train: object, evaluation: object | None = None, **keys: Any) -> dict[str, Any]:
    """Changes to the tiny recipe: shards to train on, and to evaluate on."""
    stream = {"kind": "stream", "path": str(train), **keys}
    eval_data = {"eval": {"kind": "stream", "path": str(evaluation)}} if evaluation else {}
    return {"data": {"train": stream, "fraction": 1.0, "shards": {"cache": "cache"}, **eval_data}}


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(*changes: dict[str, Any], name: str = "run") -> Path:
        return write_recipe(tmp_path, *changes, {"data": {"root": str(tmp_path)}}, name=name)

    return write


# ---- runs ----------------------------------------------------------------------------------------


def test_a_run_resumes_from_another_port_and_from_a_copy(
    sets: Path,
    servers: tuple[FolderServer, FolderServer],
    write: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also with the numbers that None stands for."""
    assert run(write(over(sets / "a", sets / "a"), name="uninterrupted")) == DONE
    for number, server in enumerate(servers):
        stop_after(3, monkeypatch)
        assert run(write(over(f"{server.url}/a", f"{server.url}/a"))) == INTERRUPTED
        monkeypatch.undo()
        has_moved = (
            "changed since the checkpoint: data.train.path, data.eval.path"
            in capsys.readouterr().out
        )
        assert has_moved == bool(number), "nothing changes in the first session"
    assert run(write(over(sets / "copy", sets / "a", lanes=16, block=256))) == DONE
    assert_same_run(tmp_path / "run", tmp_path / "uninterrupted")


@pytest.mark.parametrize(
    ("train", "evaluation", "says"),
    [
        (
            "other",
            "a",
            (
                r"\n  training shards \(SHA-256\): [0-9a-f]{64} -> [0-9a-f]{64}\nShards are the"
                r" same where their names"
            ),
        ),
        ("longer", "a", r"\n  training shards \(SHA-256\)"),
        ("bare", "a", r"\n  training shards \(SHA-256\)"),
        ("a", "other", r"these:\n  evaluation shards \(SHA-256\)"),
    ],
)
def test_other_shards_are_refused_and_named(
    train: str,
    evaluation: str,
    says: str,
    sets: Path,
    write: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also those of the same names and counts, and a copy whose manifest was left behind, since
    nothing says that it is one.
    """
    classes = tmp_path / "classes.txt"
    classes.write_text("\n".join(SOURCE.classes))
    stop_after(1, monkeypatch)
    assert run(write(over(sets / "a", sets / "a", classes=str(classes)))) == INTERRUPTED
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    with pytest.raises(
        InputError,
        match=f"{checkpoint(tmp_path / 'run')}: was made with another data set(.|\n)*{says}",
    ):
        run(write(over(sets / train, sets / evaluation, classes=str(classes))))
    assert {path: path.read_bytes() for path in before} == before


def test_another_block_is_refused_and_named(
    sets: Path, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(1, monkeypatch)
    assert run(write(over(sets / "a", block=4096))) == INTERRUPTED
    with pytest.raises(
        InputError, match=r"these:\n  data.train.block: 4096 -> 256\nPut the earlier ones back"
    ):
        run(write(over(sets / "a")))
    with pytest.raises(InputError, match=r"these:\n  data.train.lanes: 16 -> 8\nPut"):
        run(write(over(sets / "a", block=4096, lanes=8)))


def test_what_an_earlier_version_did_not_record_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\n  data.train.block: \(not recorded\) -> 256\n"):
        refuse_other_inputs(
            tmp_path, {"training images": 3}, {"training images": 3, "data.train.block": 256}
        )
    with pytest.raises(InputError, match=r"\n  data.train.block: 256 -> \(not recorded\)\n"):
        refuse_other_inputs(tmp_path, {"data.train.block": 256}, {})


# ---- recipes -------------------------------------------------------------------------------------


def stages(first: dict[str, Any]) -> dict[str, Any]:
    soft = {"objective": {"hard": None, "soft": {"loss": "kl"}}}
    return {
        "train": {"budget": None},
        "stages": [
            {
                "name": "foreign",
                "budget": "5 iterations",
                "data": {"train": first},
                "student": soft,
            },
            {"name": "own", "budget": "1 epochs"},
        ],
    }


def stream(path: str, **keys: Any) -> dict[str, Any]:
    return {"kind": "stream", "path": path, "labelled": False, **keys}


@pytest.mark.parametrize("key", ["data.train", "data.eval", "stages.foreign.data.train"])
def test_the_place_of_a_stream_is_no_part_of_what_a_run_is(
    key: str, write: Write, tmp_path: Path
) -> None:
    recipe = write(over("here", "here"), stages(stream("here")))
    before = load_recipe(recipe)
    moved = load_recipe(recipe, [f"{key}.path=https://there/{{0..3}}.tar?signature=1"])
    assert moved != before
    assert recipe_fingerprint(moved) == recipe_fingerprint(before)
    for other in ("split=test", "image=png", "container=tar"):
        changed = load_recipe(recipe, [f"{key}.{other}"])
        assert recipe_fingerprint(changed) != recipe_fingerprint(before)
        message = another_recipe(tmp_path, "1", dump_recipe(before), dump_recipe(changed))
        assert f"\n  {key}.{other.partition('=')[0]}: null -> " in message
    both = load_recipe(recipe, [f"{key}.path=there", "seed=3"])
    message = another_recipe(tmp_path, "1", dump_recipe(before), dump_recipe(both))
    assert "seed: 0 -> 3" in message
    assert "path" not in message, "it is not what the continuation fails for"


@pytest.mark.parametrize("kind", ["image_folder", "parquet", "arrow", "saved"])
def test_the_place_of_other_data_is(kind: str, write: Write) -> None:
    def digest(path: str) -> str:
        return recipe_fingerprint(
            load_recipe(write({"data": {"train": {"kind": kind, "path": path}}}))
        )

    assert digest("here") != digest("there")


# ---- numbers that come from the data -------------------------------------------------------------


def test_a_block_is_chosen_from_the_data_unless_the_recipe_says_one(
    sets: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From what is drawn of the shards. The recipe that a run keeps says what its own said."""
    import distill.data.order.lanes

    monkeypatch.setattr(distill.data.order.lanes, "_BLOCK_BOUNDS", (2, 4096))
    soft = {"student": {"objective": {"hard": None, "soft": {"loss": "kl"}}}}

    def block(*changes: dict[str, Any]) -> int:
        plan = make_plan(load_recipe(write(over(sets / "a", labelled=False), soft, *changes)))
        order = plan.stages[0].order
        assert isinstance(order, LaneOrder)
        assert plan.inputs()["data.train.block"] == order.block
        return order.block

    assert block() == 25 // 4
    assert block({"data": {"fraction": 0.5}}) == 25 // 8
    assert block({"data": {"train": {"block": 9}}}) == 9
    text = dump_recipe(load_recipe(write(over(sets / "a"))))
    assert yaml.safe_load(text)["data"]["train"]["block"] is None


# ---- what shards are known by --------------------------------------------------------------------


def fingerprint(path: object) -> str:
    source = open_source(StreamSpec(kind="stream", path=str(path), labelled=False), Path("/"))
    assert isinstance(source, StreamSource)
    return source.fingerprint()


def test_tars_without_checksums_are_known_by_names_and_counts_alone(sets: Path) -> None:
    """The limit of it: `bare-other` has other images. The manifests of the same two sets tell them
    apart.
    """
    assert fingerprint(sets / "bare") == fingerprint(sets / "bare-other")
    assert fingerprint(sets / "a") == fingerprint(sets / "copy") != fingerprint(sets / "other")
    assert fingerprint(sets / "bare") not in (
        fingerprint(sets / "a"),
        fingerprint(sets / "bare" / "shard-0000[0-2].tar"),
    )
