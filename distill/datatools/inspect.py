"""Reports what a source holds, for people or as JSON."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from distill.console import make_console, show_table
from distill.data.folder import files_not_read
from distill.data.label_sets import known_as
from distill.data.order.lanes import default_block
from distill.data.records import Source, at
from distill.datatools.look import (
    Choice,
    SeenImage,
    bring,
    choose,
    kinds_of,
    look,
    measure_speed,
    pixels_of,
)
from distill.datatools.named import OPTION, Named, in_command_words
from distill.datatools.sheet import View, draw_sheet
from distill.errors import InputError, printable
from distill.recipe import schema

_FIRST_CLASSES = 5
_NAMED_FAULTS = 5
_LONGEST_NAME = 100
_USUAL_PIXELS = ("RGB", "L")


@dataclass(frozen=True)
class Spread:
    """The smallest value, the median and the largest."""

    smallest: int
    median: int
    largest: int


def _spread(values: Sequence[int] | np.ndarray) -> Spread:
    ordered = np.sort(np.asarray(values, dtype=np.int64))
    return Spread(int(ordered[0]), int(ordered[len(ordered) // 2]), int(ordered[-1]))


def examine(
    named: Named, *, num_images: int, seed: int, num_workers: int
) -> tuple[dict[str, Any], list[int]]:
    """A report of a source as values for JSON, and the indices of the images that could be read.

    Raises:
        InputError: a shard of the source cannot be read.
    """
    source = named.source
    with in_command_words():
        choice = choose(source, num_images, seed)
        brought_s = bring(source, choice)
        seen = look(source, choice.candidates[:num_images].tolist(), num_workers)
        speed = measure_speed(source, choice.candidates.tolist(), num_workers)
    report: dict[str, Any] = {
        "source": named.text,
        "kind": named.spec.kind,
        "num_samples": len(source),
        "shards": None,
        "not_read": _not_read(named),
        "classes": _classes(source),
        "looked_at": _looked_at(source, choice, seen),
        "speed": (
            None
            if speed is None
            else {key: round(value, 1) for key, value in asdict(speed).items()}
        ),
    }
    if source.shards:
        report["shards"] = _shards(source, choice, brought_s)
    return report, [each.number for each in seen if each.fault is None]


def _not_read(named: Named) -> str:
    """Which files of an image folder are not read; empty if all are, or for another kind."""
    if not isinstance(named.spec, schema.ImageFolderSpec):
        return ""
    return files_not_read(at(named.root, named.spec.path, OPTION), OPTION)


def _shards(source: Source, choice: Choice, brought_s: float) -> dict[str, Any]:
    sizes = [shard.size_bytes for shard in source.shards]
    known = [size for size in sizes if size is not None]
    whole = len(known) == len(sizes)
    remote = [source.shards[i].size_bytes for i in choice.shards if not source.shards[i].is_local]
    fetched = None
    if remote:
        num_bytes = sum(size or 0 for size in remote) if all(remote) else None
        fetched = {"shards": len(remote), "bytes": num_bytes, "seconds": round(brought_s, 2)}
    return {
        "count": len(source.shards),
        "first": source.shards[0].name,
        "samples": asdict(_spread(source.shard_sizes)),
        "block": default_block(source.shard_sizes),
        "bytes": asdict(_spread(known)) if whole else None,
        "bytes_total": sum(known) if whole else None,
        "fetched": fetched,
    }


def _classes(source: Source) -> dict[str, Any] | None:
    if not source.classes:
        return None
    samples = None
    if isinstance(source.labels, np.ndarray):
        counts = np.bincount(source.labels, minlength=len(source.classes))
        samples = asdict(_spread(counts)) | {"empty_classes": int((counts == 0).sum())}
    return {
        "count": len(source.classes),
        "first": list(source.classes[:_FIRST_CLASSES]),
        "label_set": known_as(source.classes),
        "samples": samples,
    }


def _looked_at(source: Source, choice: Choice, seen: list[SeenImage]) -> dict[str, Any]:
    whole = sorted(
        (each for each in seen if each.fault is None),
        key=lambda each: (each.width * each.height, each.width),
    )
    middle = [whole[0], whole[len(whole) // 2], whole[-1]] if whole else []
    pixels = dict(
        zip(
            ("smallest", "median", "largest"),
            ([each.width, each.height] for each in middle),
            strict=False,
        )
    )
    return {
        "images": len(seen),
        "shards": len(choice.shards) or None,
        "bytes": asdict(_spread([each.num_bytes for each in whole])) if whole else None,
        "pixels": pixels or None,
        "formats": kinds_of(seen),
        "pixel_formats": pixels_of(seen),
        "brightest_of_deep": max(
            (each.brightest for each in seen if each.brightest is not None), default=None
        ),
        "unreadable": [
            {"where": source.describe(each.number), "why": each.fault}
            for each in seen
            if each.fault is not None
        ],
        "refused": sum(each.refused for each in seen),
    }


def write_sheet(named: Named, indices: Sequence[int], view: View, seed: int, path: Path) -> None:
    """Draw some of the images into a PNG.

    Raises:
        InputError: it cannot be written, or the view is none for these images.
    """
    sheet = draw_sheet(named.source, indices, view, seed, f"{named.text}, seed {seed}")
    try:
        sheet.save(path, "PNG")
    except OSError as error:
        raise InputError(
            f"--sheet {path}: cannot be written: {error.strerror or error}; name another file, or"
            " give --no-sheet"
        ) from error


# ---- for people ----------------------------------------------------------------------------------


def show(report: dict[str, Any], sheet: Path | None, view_of: str, *, as_json: bool) -> None:
    """Print a report, and whose view the sheet shows."""
    console = make_console()
    if as_json:
        print(json.dumps(report | {"sheet": None if sheet is None else str(sheet)}))
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, lines in _lines(report):
        for i, line in enumerate(lines):
            table.add_row("" if i else name, printable(line))
    if sheet is not None:
        table.add_row("sheet", f"{printable(str(sheet))}, with the augmentation of {view_of}")
    console.print(
        f"{printable(report['source'])}: {report['num_samples']:,} images ({report['kind']})",
        markup=False,
        soft_wrap=True,
    )
    show_table(console, table)


def _lines(report: dict[str, Any]) -> list[tuple[str, list[str]]]:
    seen, speed = report["looked_at"], report["speed"]
    lines = [("shards", _shard_lines(report["shards"]))] if report["shards"] else []
    lines.append(("classes", _class_lines(report["classes"])))
    if report["not_read"]:
        lines.append(("not read", [report["not_read"]]))
    of = f" of {_count(seen['shards'], 'shard')}" if seen["shards"] else ""
    looked_at = [_count(seen["images"], "image") + of]
    if seen["pixels"]:
        looked_at.append(_range(seen["pixels"], lambda size: "x".join(map(str, size)), "pixels"))
        looked_at.append(_range(seen["bytes"], _bytes, "each"))
        looked_at.append(", ".join(f"{count:,} {kind}" for kind, count in seen["formats"].items()))
    if unusual := {
        name: count for name, count in seen["pixel_formats"].items() if name not in _USUAL_PIXELS
    }:
        looked_at.append(
            "pixels: " + ", ".join(f"{count:,} {name}" for name, count in unusual.items())
        )
    lines.append(("looked at", looked_at))
    brightest = seen["brightest_of_deep"]
    if brightest is not None and brightest < 128:  # half of what the bits allow
        looked_at.append(
            f"the brightest pixel of those with more than 8 bits becomes {brightest} of 255: they"
            " may have fewer bits than their files say; if so, store 8-bit pixels"
        )
    faults = [f"{fault['where']}: {fault['why']}" for fault in seen["unreadable"]]
    if len(faults) > _NAMED_FAULTS:
        faults[_NAMED_FAULTS:] = [f"and {len(faults) - _NAMED_FAULTS} more"]
    refused = f", {seen['refused']:,} for the range of their values" if seen["refused"] else ""
    lines.append(
        (
            "unreadable",
            (
                [f"{len(seen['unreadable']):,} of them{refused}", *faults]
                if faults
                else ["none of them"]
            ),
        )
    )
    if speed:
        by = _count(int(speed["processes"]), "process", "processes")
        lines.append(
            (
                "speed",
                [
                    f"{speed['images_per_s']:,.0f} images/s ({_bytes(speed['bytes_per_s'])}/s) read"
                    f" and decoded by {by}"
                ],
            )
        )
    return lines


def _shard_lines(shards: dict[str, Any]) -> list[str]:
    samples, size = shards["samples"], shards["bytes"]
    lines = [
        f"{shards['count']:,}, of {_range(samples, '{:,}'.format, 'images')}; the first is"
        f" {shards['first']}"
    ]
    if size:
        lines.append(f"{_range(size, _bytes, 'each')}; {_bytes(shards['bytes_total'])} together")
    lines.append(
        f"a run shuffles within {shards['block']:,} images of a lane, unless it sets"
        " data.train.block"
    )
    if fetched := shards["fetched"]:
        rate = ""
        if fetched["bytes"] and fetched["seconds"]:
            rate = (
                f" ({_bytes(fetched['bytes'])}, {_bytes(fetched['bytes'] / fetched['seconds'])}/s)"
            )
        lines.append(
            f"{_count(fetched['shards'], 'shard')} came here in {fetched['seconds']:.1f} s{rate};"
            " what the cache held took none"
        )
    return lines


def _class_lines(classes: dict[str, Any] | None) -> list[str]:
    if classes is None:
        return ["none: no labels"]
    first = ", ".join(map(_name, classes["first"])) + (
        ", ..." if classes["count"] > len(classes["first"]) else ""
    )
    label_set = f" ({classes['label_set']})" if classes["label_set"] else ""
    lines = [f"{classes['count']:,}{label_set}: {first}"]
    if samples := classes["samples"]:
        empty = f"; {samples['empty_classes']:,} have none" if samples["empty_classes"] else ""
        lines.append(f"{_range(samples, '{:,}'.format, 'images each')}{empty}")
    return lines


def _name(name: str) -> str:
    """A class name in a list: in quotes where its ends, or that it is one name, would not be seen;
    cut where it is long.
    """
    shown = printable(name)
    if len(shown) > _LONGEST_NAME:
        shown = f"{shown[:_LONGEST_NAME]}..."
    return repr(shown) if not name or name != name.strip() or "," in name else shown


def _range(spread: Mapping[str, Any], say: Callable[[Any], str], what: str) -> str:
    """A `Spread` of something: "3 to 9 images, median 5", or "5 images" where all are the same."""
    if spread["smallest"] == spread["largest"]:
        return f"{say(spread['median'])} {what}"
    return (
        f"{say(spread['smallest'])} to {say(spread['largest'])} {what}, median"
        f" {say(spread['median'])}"
    )


def _count(number: int, one: str, several: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def _bytes(number: float) -> str:
    """Of 10^3, as disks count."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"
