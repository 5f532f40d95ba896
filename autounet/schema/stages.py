"""Which configurations another one needs before it: the stages of a cascade."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from autounet.schema.errors import PlanError
from autounet.schema.plan import Configuration


def with_previous_stages(names: Iterable[str], configurations: Mapping[str, Configuration]) -> tuple[str, ...]:
    """`names` and every previous stage they need, each once and after what it needs, else in the order given.

    Raises PlanError for a name or a previous stage that is not there, and for stages that need each other.
    """
    ordered: list[str] = []
    for name in names:
        chain = [name]
        while (previous := _configuration(chain, configurations).previous_stage) is not None:
            if previous in chain:
                raise PlanError(f"{previous} needs itself as its previous stage. Correct previous_stage in the plan")
            chain.append(previous)
        ordered += [each for each in reversed(chain) if each not in ordered]
    return tuple(ordered)


def _configuration(chain: list[str], configurations: Mapping[str, Configuration]) -> Configuration:
    """The last of a chain of stages, of which each needs the next."""
    if chain[-1] in configurations:
        return configurations[chain[-1]]
    wanted = f" as the previous stage of {chain[-2]}" if len(chain) > 1 else ""
    raise PlanError(f"no configuration {chain[-1]}{wanted}; there are {', '.join(configurations)}")
