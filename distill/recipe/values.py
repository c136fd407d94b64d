"""What the sections of a recipe are made of: numbers with their bounds, tuples written as YAML lists, and the frozen base."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

Probability = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Count = Annotated[int, Field(ge=1)]


def as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value  # YAML has lists only, and strict tuples refuse them


def _ascending(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 < value[0] <= value[1]:
        raise ValueError(f"should be two numbers above 0, the smaller first, not {list(value)}")
    return value


Range = Annotated[tuple[float, float], BeforeValidator(as_tuple), AfterValidator(_ascending)]
Triple = Annotated[tuple[float, float, float], BeforeValidator(as_tuple)]
Std = Annotated[tuple[Positive, Positive, Positive], BeforeValidator(as_tuple)]
Names = Annotated[tuple[str, ...], BeforeValidator(as_tuple)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())
