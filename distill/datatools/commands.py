"""distill data shard | inspect. What they need is imported when they run: the other commands start
as fast without.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from distill.errors import InputError

if TYPE_CHECKING:
    from distill.recipe import schema

data_app = typer.Typer(
    help="Look at data, and cut it into shards that a run can stream.", no_args_is_help=True
)

SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help=(
            "An image folder; Parquet, Arrow or tar files (a file, a folder, a pattern, names in"
            " braces); a saved data set; a URL (https://, s3://, hf://datasets/OWNER/NAME);"
            " fashion_mnist[:SPLIT]; or a recipe's data, as RECIPE:data.train."
        ),
    ),
]
Classes = Annotated[
    str | None,
    typer.Option(
        help="File of class names, a name a line, where SOURCE holds only some; or imagenet-1k."
    ),
]
Split = Annotated[
    str | None, typer.Option(help="Where SOURCE has splits: train, if left out and it needs one.")
]
Unlabelled = Annotated[
    bool,
    typer.Option(
        "--unlabelled",
        help="Leave the labels out: images of another label space than the teacher's.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(min=0, help="Local processes; the cores of the machine if left out, 0 for none."),
]
Cache = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER",
        help="Where shards of a stream are kept; in the temporary folder if left out.",
    ),
]
CacheGb = Annotated[float, typer.Option(metavar="GB", help="What that folder may hold.")]


@data_app.command("shard")
def shard(
    source: SourceArgument,
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="The folder to write; all processes share it.", file_okay=True
        ),
    ],
    container: Annotated[
        Literal["tar", "parquet"], typer.Option(help="tar is webdataset's form.")
    ] = "tar",
    shard_mb: Annotated[
        float | None,
        typer.Option(
            help="About so many MB a shard, by the size of some of the images; 64 if left out."
        ),
    ] = None,
    samples_per_shard: Annotated[
        int | None, typer.Option(min=1, help="At most so many, instead.")
    ] = None,
    resize: Annotated[
        int | None,
        typer.Option(
            min=8,
            metavar="PIXELS",
            help="Shrink larger images to this shorter side, as JPEG. Never enlarges.",
        ),
    ] = None,
    quality: Annotated[
        int | None,
        typer.Option(min=1, max=100, help="Of the JPEGs that --resize makes; 95 if left out."),
    ] = None,
    shuffle: Annotated[
        bool, typer.Option(help="Mix the classes over the shards, or keep the order of SOURCE.")
    ] = True,
    seed: Annotated[
        int, typer.Option(min=0, help="Of the shuffling: the same seed makes the same files.")
    ] = 0,
    classes: Classes = None,
    split: Split = None,
    unlabelled: Unlabelled = False,
    unreadable: Annotated[
        Literal["error", "skip"],
        typer.Option(
            help="Stop at an unreadable image, or leave it out: its shard then holds fewer."
        ),
    ] = "error",
    workers: Workers = None,
    cache: Cache = None,
    cache_gb: CacheGb = 100.0,
) -> None:
    """Write any source into evenly sized shards, which a run streams (kind: stream).

    Killed at any moment, the same command continues; of a complete set it
    checks every byte. The same source and options make the same files. Every
    image is decoded once, so that a broken one is found here. Images keep
    their bytes unless --resize shrinks them (what is not JPEG, PNG or WebP
    becomes PNG). OUT/manifest.json holds counts, classes and checksums.

    Examples:
      distill data shard /data/train shards/train --resize 256
      distill data shard 'in21k/*.tar' shards/in21k --unlabelled
      distill data shard my.yaml:data.train shards --container parquet
      torchrun --nproc-per-node 4 -m distill data shard /data/train shards
    Or in a job array, in any order: RANK and WORLD_SIZE say which part.
    """
    from distill.datatools.named import open_named
    from distill.datatools.plan import ShardOptions
    from distill.datatools.processes import num_workers_here, read_rank
    from distill.datatools.shard import shard as write

    if shard_mb is not None and samples_per_shard is not None:
        raise InputError("--shard-mb and --samples-per-shard: give one of them")
    if shard_mb is not None and not 0 < shard_mb < float("inf"):
        raise InputError(f"--shard-mb {shard_mb}: should be above 0")
    if quality is not None and resize is None:
        raise InputError(
            "--quality: only what --resize shrinks is encoded again; give both, or neither"
        )
    rank = read_rank(os.environ)
    named = open_named(
        source,
        classes=classes,
        split=split,
        labelled=not unlabelled,
        shards=_shards(cache, cache_gb),
    )
    asked = ShardOptions(
        container=container,
        seed=seed if shuffle else None,
        resize=resize,
        quality=None if resize is None else quality or 95,
        labelled=not unlabelled and bool(named.source.classes),
        samples_per_shard=samples_per_shard,
        shard_mb=shard_mb,
    )
    write(
        named,
        out,
        asked,
        skip=unreadable == "skip",
        num_workers=num_workers_here(workers, os.environ),
        rank=rank,
    )


@data_app.command("inspect")
def inspect(
    source: SourceArgument,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE",
            help="Whose augmentation and teacher the sheet shows; strategy A2 if left out.",
        ),
    ] = None,
    stage: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Which one, of a RECIPE in stages; the first if left out."
        ),
    ] = None,
    sheet: Annotated[Path, typer.Option(metavar="FILE", help="The PNG to write.")] = Path(
        "inspect.png"
    ),
    no_sheet: Annotated[bool, typer.Option("--no-sheet", help="Write none.")] = False,
    teacher_size: Annotated[
        int | None,
        typer.Option(
            min=8, metavar="PIXELS", help="What the teacher sees; the recipe's if left out."
        ),
    ] = None,
    images: Annotated[
        int, typer.Option(min=1, help="How many to look at, of at most four shards.")
    ] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Which ones, and how they are augmented.")] = 0,
    classes: Classes = None,
    split: Split = None,
    unlabelled: Unlabelled = False,
    count: Annotated[
        bool,
        typer.Option(
            "--count",
            help="Read every shard of a stream once, where nothing says how many samples it holds.",
        ),
    ] = False,
    workers: Workers = None,
    cache: Cache = None,
    cache_gb: CacheGb = 100.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Say what a source holds, and how fast this machine reads it.

    Shards, samples, classes, sizes, unreadable images among those looked at,
    and a sheet of images as the student sees them in training, beside each
    what the teacher sees of it.

    Examples:
      distill data inspect /data/imagenet/train
      distill data inspect hf://datasets/timm/imagenet-1k-wds --split validation
      distill data inspect imagenet1k/res50_beitv2b_a2_300ep:data.train
      distill data inspect 'https://HOST/train-{0000..0127}.tar' --count
    """
    from distill.datatools.inspect import examine, show, write_sheet
    from distill.datatools.named import open_named
    from distill.datatools.processes import num_workers_here
    from distill.datatools.sheet import view_of
    from distill.recipe import load_recipe

    if recipe is not None and no_sheet:
        raise InputError(
            "--recipe: says how the sheet is drawn, and --no-sheet says there is none: leave"
            " one out"
        )
    if stage is not None and recipe is None:
        raise InputError("--stage: is of --recipe; give both, or neither")
    given = None if recipe is None else load_recipe(recipe)
    named = open_named(
        source,
        classes=classes,
        split=split,
        labelled=not unlabelled,
        shards=_shards(cache, cache_gb),
        count=_count if count else None,
    )
    view = view_of(given or named.recipe, recipe or source, teacher_size, stage)
    report, readable = examine(
        named, num_images=images, seed=seed, num_workers=num_workers_here(workers, os.environ)
    )
    if not no_sheet:
        write_sheet(named, readable, view, seed, sheet)
    show(report, None if no_sheet else sheet, view.augment_of, as_json=as_json)


def _shards(cache: str | None, cache_gb: float) -> "schema.ShardsSpec":
    from distill.recipe import schema

    if not 0 < cache_gb < float("inf"):
        raise InputError(f"--cache-gb {cache_gb}: should be above 0")
    return schema.ShardsSpec(cache=cache, cache_gb=cache_gb)


def _count(spec: "schema.StreamSpec", shards: "schema.ShardsSpec") -> None:
    """Count the samples of a stream, and say how far it is on standard error."""
    from distill.console import make_console
    from distill.data.stream.opening import count_samples
    from distill.datatools.named import OPTION

    console = make_console(stderr=True)

    def progress(done: int, total: int) -> None:
        console.print(
            f"counted {done:,} of {total:,} shards",
            end="\r" if console.is_terminal and done < total else "\n",
        )

    count_samples(spec, Path(), OPTION, shards, progress)
