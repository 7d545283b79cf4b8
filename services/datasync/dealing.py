"""The dealers of a service, by name and by model."""

import importlib
from collections.abc import Iterable

from snorky.gateway import ConfigurationError
from snorky.services.datasync.dealers import Dealer

__all__ = ["Dealers"]


class Dealers:
    """Dealers: classes, instances, or "module:Class". Raises ConfigurationError: one cannot be used."""

    def __init__(self, dealers: Iterable[Dealer | type[Dealer] | str]) -> None:
        self._by_name: dict[str, Dealer] = {}
        for dealer in dealers:
            self.register(_load(dealer) if isinstance(dealer, str) else dealer)

    def register(self, dealer: Dealer | type[Dealer]) -> Dealer:
        """Add a dealer; returns the instance. Raises ConfigurationError."""
        instance = dealer() if isinstance(dealer, type) else dealer
        if not isinstance(getattr(instance, "model", None), str):
            raise ConfigurationError(f'dealer {instance.name}: set the name of its models, as in model = "Player"')
        if instance.name in self._by_name:
            raise ConfigurationError(f"two dealers have the name {instance.name}: rename one of them")
        self._by_name[instance.name] = instance
        return instance

    def unregister(self, dealer: Dealer) -> None:
        """Remove a dealer."""
        del self._by_name[dealer.name]

    def get(self, name: str) -> Dealer | None:
        """Return the dealer of this name; None if there is none."""
        return self._by_name.get(name)

    def of_model(self, model: str) -> list[Dealer]:
        """Return the dealers for a model."""
        return [dealer for dealer in self._by_name.values() if dealer.model == model]


def _load(dotted: str) -> type[Dealer]:
    module_name, _, name = dotted.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), name, None)
    except ModuleNotFoundError as error:
        raise ConfigurationError(f'dealers: "{dotted}": {error}; is it installed, or on PYTHONPATH?') from error
    if not (isinstance(found, type) and issubclass(found, Dealer)):
        raise ConfigurationError(f'dealers: "{dotted}": is not a Dealer; write "module:Class"')
    return found
