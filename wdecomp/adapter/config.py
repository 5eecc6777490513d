"""An adapter's own settings, checked field by field before any of them is used."""

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa

from wdecomp.errors import AdapterError

LARGEST = 2**31 - 1  # of a count, which no rank comes near and every float holds
Setting = TypeVar("Setting", int, float)


@dataclass(frozen=True)
class Fields:
    """The fields of one config, each read with its type and range.

    All methods raise AdapterError, with the file, the field, what was found and what was expected.
    """

    raw: Mapping[str, Any]
    where: str

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        value = self.raw.get(name, default)
        if not isinstance(value, bool):
            raise AdapterError(f"{self.where}: {name} is {value!r}, expected true or false.")
        return value

    def count(self, name: str, default: int | None = None) -> int:
        """A whole number of at least 1."""
        return _count(self.raw.get(name, default), name, self.where)

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number."""
        return _number(self.raw.get(name, default), name, self.where)

    def counts(self, name: str) -> dict[str, int]:
        """A map from a module's pattern to a whole number of at least 1."""
        return self._map(name, _count)

    def numbers(self, name: str) -> dict[str, float]:
        """A map from a module's pattern to a number."""
        return self._map(name, _number)

    def texts(self, name: str) -> tuple[str, ...]:
        """One text or a list of them."""
        value = self.raw.get(name) or ()
        if isinstance(value, str):
            return (value,)
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise AdapterError(f"{self.where}: {name} is {value!r}, expected a list of names.")
        return tuple(value)

    def _map(self, name: str, check: Callable[[Any, str, str], Setting]) -> dict[str, Setting]:
        value = self.raw.get(name) or {}
        if not isinstance(value, dict):
            raise AdapterError(
                f"{self.where}: {name} is {value!r}, expected a map from module to value."
            )
        for key in value:
            _matching(pa.array([""]), key, f"{self.where}: {name}")
        return {key: check(item, f"{name}[{key!r}]", self.where) for key, item in value.items()}


def by_module(
    modules: Iterable[str], pattern: Mapping[str, Setting], default: Setting, where: str
) -> dict[str, Setting]:
    """Every module's setting.

    A key of a pattern is a regular expression that must match the end of the module's name from a
    dot on; the first that does, in the order of the file, counts, as in PEFT. The keys are
    strangers' patterns: RE2, in Arrow, never backtracks, so that none can stall it.

    Raises:
        AdapterError: a key is no regular expression.
    """
    names = pa.array(list(modules), pa.string())
    found = dict.fromkeys(modules, default)
    for key, value in reversed(list(pattern.items())):  # so that the first match is written last
        found |= dict.fromkeys(_matching(names, key, where).to_pylist(), value)
    return found


def _matching(names: pa.Array, key: str, where: str) -> pa.Array:
    import pyarrow.compute as pc  # more than all else that an adapter's config needs

    try:
        return names.filter(pc.match_substring_regex(names, rf"^(.*\.)?({key})$"))
    except pa.ArrowInvalid as error:
        raise AdapterError(f"{where}: {key!r} is no regular expression ({error}).") from None


def _count(value: Any, name: str, where: str) -> int:
    if type(value) is not int or not 1 <= value <= LARGEST:
        raise AdapterError(f"{where}: {name} is {value!r}, expected a whole number of at least 1.")
    return value


def _number(value: Any, name: str, where: str) -> float:
    if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
        raise AdapterError(f"{where}: {name} is {value!r}, expected a number.")
    return float(value)
