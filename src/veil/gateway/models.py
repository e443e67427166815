"""The models that a gateway offers, by the names that requests call them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from veil.gateway.failures import ApiError
from veil.gateway.generation import Generator
from veil.gateway.served import ServedModel


@dataclass(frozen=True, eq=False)
class Offered:
    """A model, what generates with it, and further names that mean it."""

    served: ServedModel
    generator: Generator
    aliases: tuple[str, ...] = ()


class Models:
    """One or several models. ``aliases`` are further names, each with the model that it means.

    `ValueError` for no model, for two of one name, and for an alias of none.
    """

    def __init__(self, served: Sequence[ServedModel], aliases: Mapping[str, str] | None = None, callers: int = 1) -> None:
        aliases = dict(aliases or {})
        names = [one.name for one in served]
        if not names:
            raise ValueError("a gateway needs a model")
        for name in names:
            if names.count(name) > 1 or name in aliases:
                raise ValueError(f"two models would be called {name!r}; give each a name of its own (NAME=…)")
        for alias, name in aliases.items():
            if name not in names:
                raise ValueError(f"--alias {alias}={name}: there is no model {name!r}; there is {', '.join(names)}")
        self.all = [
            Offered(one, Generator(one, callers), tuple(alias for alias, name in aliases.items() if name == one.name))
            for one in served
        ]
        self._by_name = {name: one for one in self.all for name in (*one.served.names, *one.aliases)}

    @property
    def first(self) -> Offered:
        """The model of requests that need not name one."""
        return self.all[0]

    def find(self, name: str) -> Offered:
        """The model of a name. `ApiError` 404."""
        found = self._by_name.get(name)
        if found is None:
            served = ", ".join(repr(known) for known in self._by_name)
            raise ApiError(
                404,
                f"the model {name[:80]!r} is not served here; {served} {'are' if len(self._by_name) > 1 else 'is'}",
                param="model",
                code="model_not_found",
            )
        return found

    def need(self, name: str, kind: str) -> Offered:
        """The model of a name, which has to be of this kind. `ApiError`."""
        found = self.find(name)
        found.served.need(kind)
        return found
