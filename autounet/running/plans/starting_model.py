"""The model that `--init` names, as the planner sees it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from autounet.inference.bundle import load_bundle
from autounet.running.recipes import TRANSFERRED_RATE
from autounet.schema.bundle import ModelBundle
from autounet.schema.errors import OptionError
from autounet.schema.options import RunOptions, WeightsSource
from autounet.schema.starting import StartingModel


def network_source(options: RunOptions) -> WeightsSource | None:
    """The model whose networks a plan takes over; None: there is none, or a preset says what the networks are."""
    source = options.start
    return source if source is not None and source is options.init and not options.preset else None


def starting_model(options: RunOptions) -> StartingModel | None:
    """None also where the model is gone since: what was planned and trained from it stays.

    Raises OptionError where the options ask for another family, and ModelError for a damaged model.
    """
    source = network_source(options)
    if source is None or not Path(source.path).exists():
        return None
    bundle, folder = loaded(source)
    families = {each.network.family for each in bundle.configurations.values()}
    if options.family not in (None, *families):
        raise OptionError(
            f"--init {folder}: the networks of the model are of the family {', '.join(sorted(families))}, and "
            f"--family is {options.family}. Give --family {min(families)}, or --init none"
        )
    return StartingModel(name=str(folder), channels=bundle.channels, configurations=bundle.configurations)


def loaded(source: WeightsSource) -> tuple[ModelBundle, Path]:
    """The bundle and its folder, read once for each checksum. Raises ModelError as `load_bundle` does."""
    return _loaded(source.path, source.checksum)


@lru_cache(maxsize=1)
def _loaded(path: str, checksum: str | None) -> tuple[ModelBundle, Path]:
    return load_bundle(Path(path))


def require_model(options: RunOptions, starting: StartingModel | None) -> None:
    """Raises OptionError where a plan is to be made from a model that is gone."""
    source = network_source(options)
    if source is not None and starting is None:
        raise OptionError(
            f"--init {source.path} is gone, and a new plan needs its network. Give the path where it is now, or "
            "--init none"
        )


def transfer_reason(model: StartingModel) -> str:
    return (
        f"Training starts from the weights of {model.name}, so its learning rate rises to {TRANSFERRED_RATE:g} at most "
        "(0.01 with SGD, 0.003 with AdamW where nothing is transferred), from 0 over the first 5 %."
    )
