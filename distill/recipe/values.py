"""Types for the sections of a recipe: numbers with bounds, tuples that are written as YAML lists,
and the frozen base class.
"""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
)
from pydantic_core import CoreSchema, core_schema


@dataclass(frozen=True)
class Within:
    """A practical bound of a number: outside of it, a valid recipe would fail or hang when it runs.
    `why` is part of the message.
    """

    low: float
    high: float
    why: str

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"minimum": self.low, **handler(schema), "maximum": self.high}

    def _check(self, value: float) -> float:
        if not self.low <= value <= self.high:
            bound = f"at most {self.high:,g}" if value > self.high else f"at least {self.low:g}"
            raise ValueError(f"should be {bound}, not {value:g}: {self.why}")
        return value


_FLOAT32 = "weights are float32, which ends at 3e38"
Probability = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0), Within(0, 1e30, _FLOAT32)]
Positive = Annotated[float, Field(gt=0), Within(1e-30, 1e30, _FLOAT32)]
Weight = Annotated[float, Field(ge=0), Within(0, 1e6, "a loss of a larger weight leaves float32")]
Temperature = Annotated[
    float, Field(gt=0), Within(1e-2, 1e3, "logits divided by it, or its square, leave float32")
]
Fraction = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Count = Annotated[int, Field(ge=1), Within(1, 10**9, "no count in a recipe needs more")]
Seconds = Annotated[int, Field(ge=1), Within(1, 10**6, "that is eleven days")]
EvenBatch = Annotated[
    int, Field(ge=2, multiple_of=2), Within(2, 2**20, "no machine holds more images at once")
]
Pixels = Annotated[int, Field(ge=8), Within(8, 4096, "no classifier looks at larger images")]


def as_tuple(value: Any) -> Any:
    """Converts a list, as YAML has it, since strict tuples refuse lists."""
    return tuple(value) if isinstance(value, list) else value


def _ascending(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 < value[0] <= value[1]:
        raise ValueError(f"should be two numbers above 0, the smaller first, not {list(value)}")
    if value[0] < 0.01 or value[1] > 100:
        raise ValueError(
            f"should be two numbers from 0.01 to 100, not {list(value)}: other crops have no pixels"
        )
    return value


Range = Annotated[tuple[float, float], BeforeValidator(as_tuple), AfterValidator(_ascending)]
_Channel = Annotated[float, Within(-1e3, 1e3, "pixels are numbers from 0 to 1")]
_Spread = Annotated[float, Field(gt=0), Within(1e-3, 1e3, "pixels are numbers from 0 to 1")]
Triple = Annotated[tuple[_Channel, _Channel, _Channel], BeforeValidator(as_tuple)]
Std = Annotated[tuple[_Spread, _Spread, _Spread], BeforeValidator(as_tuple)]
Names = Annotated[tuple[str, ...], BeforeValidator(as_tuple)]


def _checked_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of a model.

    Raises:
        ValueError: a number in them, at any depth, is too large for a count or a size.
    """
    unchecked: list[tuple[str, Any]] = list(arguments.items())
    while unchecked:
        key, value = unchecked.pop()
        if isinstance(value, dict):
            unchecked += [(f"{key}.{name}", inner) for name, inner in value.items()]
        elif isinstance(value, list):
            unchecked += [(key, inner) for inner in value]
        elif isinstance(value, int) and abs(value) > _LARGEST_ARGUMENT:
            raise ValueError(
                f"{key}: should be at most {_LARGEST_ARGUMENT:,}, not {value}: no model is so large"
            )
    return arguments


_LARGEST_ARGUMENT = 10**5  # a model of this depth takes ten seconds to count
ModelArgs = Annotated[dict[str, Any], AfterValidator(_checked_arguments)]


class Section(BaseModel):
    """A section of a recipe: frozen, with strict types and without unknown keys. The docstring of a
    field is its description.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )
