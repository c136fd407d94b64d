"""Reads and writes recipe text: UTF-8 and YAML of limited size, without the surprises of YAML 1.1.

YAML 1.1 reads 010 as 8, 1:30 as 90, 1e-3 as text and 2024-01-01 as a date. Here a number with a
leading zero is refused, 1e-3 is a number, and 1:30 and dates are text. Keys are always text, so
that a student may be named `on` or `1e3`.
"""

import codecs
import math
import re
import stat
from pathlib import Path
from typing import Any

import yaml

from distill.errors import InputError

MAX_BYTES = 2 * 2**20
MAX_NODES = 100_000  # an alias counts as its content
MAX_DEPTH = 40
_MAX_DIGITS = 40  # Python refuses to convert more than 4,300

_TAG = "tag:yaml.org,2002:"
_NONE = "!None"
_INT = re.compile(r"^[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0o[0-7_]+|\d[\d_]*)$")
_FLOAT = re.compile(
    r"^(?:[-+]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+|[-+]?(?:\d[\d_]*\.[\d_]*|\.\d[\d_]*)"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_NUMBER_STARTS = list("-+0123456789.")
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, which it begins as
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


class TextError(ValueError):
    """YAML that cannot be a recipe. The message says where and why in one line."""


class _Loader(yaml.SafeLoader):
    """A SafeLoader with size limits, without dates, sexagesimal and octal numbers, and with unique
    text keys.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = self._deepest = self._num_nodes = 0
        # For each finished node: how many nodes it contains, and how deep it is.
        self._extents: dict[int, tuple[int, int]] = {}

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        """Composes a node and counts the nodes in it. An alias is one word and may contain a
        million nodes.
        """
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if id(node) not in self._extents:
                raise yaml.composer.ComposerError(
                    None, None, "an alias inside its own content", mark
                )
            size, depth = self._extents[id(node)]
            self._count(size, self._depth + depth, mark)
            return node
        before, outer_deepest = self._num_nodes, self._deepest
        self._depth += 1
        self._deepest = self._depth
        self._count(1, self._depth, mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        self._extents[id(node)] = (self._num_nodes - before, self._deepest - self._depth)
        self._deepest = max(outer_deepest, self._deepest)
        return node

    def _count(self, size: int, depth: int, mark: yaml.Mark) -> None:
        self._num_nodes += size
        self._deepest = max(self._deepest, depth)
        if self._num_nodes > MAX_NODES:
            raise yaml.composer.ComposerError(
                None, None, f"more than {MAX_NODES:,} values, with aliases expanded", mark
            )
        if depth > MAX_DEPTH:
            raise yaml.composer.ComposerError(
                None, None, f"more than {MAX_DEPTH} nested levels", mark
            )

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise _refusal("should be a mapping of keys", node)
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = self._key(key_node)
            if key in seen:
                raise _refusal(f"the key {key!r} is given twice", key_node)
            seen.add(key)
        self.flatten_mapping(node)
        return {
            self._key(key): self.construct_object(value, deep=deep) for key, value in node.value
        }

    def _key(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise _refusal("a key should be a word, not a list or a mapping", node)
        return _printable(node)

    def construct_scalar(self, node: Any) -> str:
        return (
            _printable(node)
            if isinstance(node, yaml.ScalarNode)
            else str(super().construct_scalar(node))
        )

    def construct_yaml_int(self, node: Any) -> int:
        text = self.construct_scalar(node).replace("_", "")
        if re.match(r"[-+]?0\d", text):
            plain = re.sub(r"^([-+]?)0+(?=\d)", r"\1", text)
            raise _refusal(
                f"{node.value}: write {plain}, or '{node.value}' for text: YAML reads a leading 0"
                " as octal",
                node,
            )
        if len(text) > _MAX_DIGITS:
            raise _refusal(f"a number of {len(text)} digits", node)
        return int(text, 0)

    def construct_yaml_float(self, node: Any) -> float:
        text = self.construct_scalar(node)
        value = (
            math.nan
            if text.lstrip("+-").lower() in (".inf", ".nan")
            else float(text.replace("_", ""))
        )
        if not math.isfinite(value):
            raise _refusal(f"{text}: should be a finite number, or null for none", node)
        return value

    def refuse_none(self, node: Any) -> None:
        raise _refusal("None: write null, or 'None' for text", node)

    def refuse_tag(self, node: Any) -> None:
        raise _refusal(f"{node.tag.replace(_TAG, '!!')}: a recipe may not contain tags", node)


class _Dumper(yaml.SafeDumper):
    """A SafeDumper that quotes each text that _Loader or any YAML 1.1 reader would read as another
    type.
    """

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _refusal(problem: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _printable(node: yaml.ScalarNode) -> str:
    """The text of a scalar.

    Raises:
        ConstructorError: it contains control characters, NUL or half a surrogate pair, which names,
            paths and terminals do not accept.
    """
    text: str = node.value
    for character in text:
        code = ord(character)
        if (
            (code < 0x20 and character not in "\n\t")
            or 0x7F <= code < 0xA0
            or 0xD800 <= code < 0xE000
        ):
            raise _refusal(f"the control character {character!a} in a text", node)
    return text


_Loader.yaml_implicit_resolvers = {
    start: [
        (tag, pattern)
        for tag, pattern in known
        if tag.removeprefix(_TAG) not in ("timestamp", "int", "float")
    ]
    for start, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# The dumper quotes text that its resolvers would read as another type.
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(f"{_TAG}int", _INT, _NUMBER_STARTS)
    _class.add_implicit_resolver(f"{_TAG}float", _FLOAT, _NUMBER_STARTS)
    _class.add_implicit_resolver(_NONE, re.compile("^None$"), ["N"])
_Loader.add_constructor(f"{_TAG}int", _Loader.construct_yaml_int)
_Loader.add_constructor(f"{_TAG}float", _Loader.construct_yaml_float)
_Loader.add_constructor(_NONE, _Loader.refuse_none)
for _tag in ("binary", "timestamp", "omap", "pairs", "set"):
    _Loader.add_constructor(f"{_TAG}{_tag}", _Loader.refuse_tag)
_Loader.add_constructor(None, _Loader.refuse_tag)


def parse(text: str) -> Any:
    """Returns the value of a YAML document.

    Raises:
        TextError: it is not YAML, or it contains what a recipe may not contain.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise TextError(f"{where}{error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise TextError(" ".join(str(error).split())) from error
    except (ValueError, OverflowError, LookupError, AttributeError) as error:
        # For example "\UFFFFFFFF", !!bool x, !!int "".
        raise TextError(f"{type(error).__name__}: {error}") from error


def read_text(path: Path) -> str:
    """Returns the text of a recipe file: UTF-8, or UTF-16 and UTF-32 with a byte order mark. The
    locale does not matter.

    Raises:
        InputError: it is not a plain file, too large, not readable, or in another encoding.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: should be a plain file, and is a folder, a pipe or a device")
        if status.st_size > MAX_BYTES:
            raise InputError(
                f"{path}: {status.st_size:,} bytes; a recipe has at most {MAX_BYTES:,}"
            )
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    mark, encoding = next((bom for bom in _BOMS if content.startswith(bom[0])), (b"", "utf-8"))
    try:
        return content.removeprefix(mark).decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: cannot be read: byte {error.start} is not {encoding.upper()}: save the file"
            " as UTF-8"
        ) from error


def dump(tree: Any, *, ascii_only: bool = False, in_a_line: bool = False) -> str:
    """Returns a tree as YAML. `parse` reads it back to an equal tree."""
    text: str = yaml.dump(
        tree,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=not ascii_only,
        width=10**9 if in_a_line else 120,
        default_flow_style=in_a_line,
    )
    return text
