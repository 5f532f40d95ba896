"""What a plan needs to know of the model that training starts from."""

from __future__ import annotations

from autounet.schema.dataset import Channel
from autounet.schema.plan import Configuration
from autounet.schema.record import Part

USUAL_NAMES = ("2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres")
FULL_RESOLUTION = ("3d_fullres", "3d_cascade_fullres")
"""one network, but for the channels of the previous stage"""


class StartingModel(Part):
    """The architecture of a packed model, and the images that it is for; no weights."""

    name: str
    """for sentences"""
    channels: tuple[Channel, ...]
    """of its images, in the order in which its networks see them"""
    configurations: dict[str, Configuration]

    @property
    def names(self) -> tuple[str, ...]:
        """The usual configurations that a plan takes over where none is asked for."""
        found = {name: self.source(name) for name in USUAL_NAMES}
        return tuple(name for name, source in found.items() if source == name or source not in (None, *USUAL_NAMES))

    def source(self, name: str) -> str | None:
        """The configuration of the model that configuration `name` starts from; None: there is none.

        That of the same name. 3d_fullres and 3d_cascade_fullres stand in for each other, as their networks agree; a
        name that only nnU-Net's users know, as an imported model may have, stands for 2d or 3d_fullres where it is
        the only one of these dimensions.
        """
        if name in self.configurations:
            return name
        if name in FULL_RESOLUTION and (other := next((n for n in FULL_RESOLUTION if n in self.configurations), None)):
            return other
        dims = {"2d": 2, "3d_fullres": 3}.get(name)
        unusual = [key for key, each in self.configurations.items() if each.network.dims == dims]
        return unusual[0] if len(unusual) == 1 and unusual[0] not in USUAL_NAMES else None

    def matched(self, names: tuple[str, ...]) -> tuple[int | None, ...]:
        """For each channel here the position of its own in the model; None: the model has none like it.

        By name, in any case of letters. Where no name is known to the model but the number is the same, by position.
        """
        theirs = [channel.name.casefold() for channel in self.channels]
        found = tuple(theirs.index(each.casefold()) if each.casefold() in theirs else None for each in names)
        if len(names) == len(theirs) and not any(index is not None for index in found):
            return tuple(range(len(names)))
        return found
