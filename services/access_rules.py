"""Rules of services other than pub/sub: for joining, registering names, and acquiring deltas of models."""

from typing import ClassVar

from snorky.gateway import Rule, Words

__all__ = ["JoinRule", "ModelRule", "NameRule"]


class JoinRule(Rule, frozen=True, forbid_unknown_fields=True):
    """Which clients may join the rooms or documents whose names match."""

    operations: ClassVar[tuple[str, ...]] = ("join",)

    allow_join: Words = None


class NameRule(Rule, frozen=True, forbid_unknown_fields=True):
    """Which clients may register the names that match."""

    operations: ClassVar[tuple[str, ...]] = ("register",)

    allow_register: Words = None


class ModelRule(Rule, frozen=True, forbid_unknown_fields=True):
    """Which clients may acquire subscriptions to the models whose names match."""

    operations: ClassVar[tuple[str, ...]] = ("acquire",)

    allow_acquire: Words = None
