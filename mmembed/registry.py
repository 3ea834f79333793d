"""Registries: one kind of part by name; an unknown name or setting is answered with the nearest known one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from .errors import SpecError, UnknownName, check_known

Part = TypeVar("Part", bound=Callable[..., Any])


class Registry(Generic[Part]):
    """Parts of one kind. The signature of a part is the schema of its settings.

    Example:
        >>> projectors = Registry("projector")
        >>> @projectors.register("linear")
        ... class Linear: ...
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._parts: dict[str, Part] = {}

    def register(self, name: str) -> Callable[[Part], Part]:
        def add(part: Part) -> Part:
            if name in self._parts:
                raise ValueError(f"a {self.kind} called {name!r} is already registered")
            self._parts[name] = part
            return part

        return add

    def __getitem__(self, name: str) -> Part:
        try:
            return self._parts[name]
        except KeyError:
            raise UnknownName(self.kind, name, self._parts) from None

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._parts))

    def build(self, settings: Mapping[str, Any], **given: Any) -> Any:
        """Call the part that `settings["kind"]` names with the other settings and with `given`.

        Raises:
            SpecError: `settings` has no "kind".
            UnknownName: no part of that name, or a setting it does not take.
        """
        chosen = dict(settings)
        try:
            name = chosen.pop("kind")
        except KeyError:
            raise SpecError(f"a {self.kind} needs a 'kind'; known: {', '.join(self)}") from None
        part = self[name]
        known = [p.name for p in inspect.signature(part).parameters.values() if p.kind is p.KEYWORD_ONLY]
        for key in chosen:
            check_known(f"setting of the {self.kind} {name!r}", key, known)
        return part(**given, **chosen)
