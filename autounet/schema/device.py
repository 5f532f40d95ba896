"""What a device can do, probed or measured once."""

from __future__ import annotations

from pydantic import Field

from autounet.schema.record import Part, Record


class DeviceProfile(Record):
    """`device.json`: probed once per output folder."""

    device: str
    """cpu, cuda:0, mps"""
    name: str
    """the machine in words"""
    cores: int
    memory_bytes: int
    """free for training when probed"""
    precision: str
    """fp32, bf16 or fp16: measured on a CPU, by rule elsewhere"""
    channels_last: bool
    throughput: dict[str, float] = {}
    """convolution GFLOP/s by precision, where it was measured"""
    memory_correction: float = Field(default=1.0, ge=1.0)
    """factor of predicted memory, raised when trial steps needed more or memory ran out"""
    sample_rates: dict[str, float] = {}
    """voxels a second on one core. light_2d, light_3d, full_2d, full_3d: augmenting one channel with labels of two
    classes; reading: decompressing one channel of a prepared case. Empty: not measured"""
    memory_margin_bytes: int | None = Field(default=None, ge=0)
    """on top of what tracing a step predicts, as `autounet calibrate` measured it: the CUDA context, or a process
    before its first step. None: not measured, and the default of the kind of device (`tracing.margins`) holds"""
    memory_margin_fraction: float = Field(default=0.0, ge=0)
    """share of the predicted bytes that comes on top as well: work spaces, rounding, holes between blocks"""


class CalibratedMargin(Part):
    """What `autounet calibrate` found on one device; see `DeviceProfile` for the two numbers."""

    memory_margin_bytes: int = Field(ge=0)
    memory_margin_fraction: float = Field(ge=0)
    torch: str
    """version it was measured with; another one may need other memory"""


class Calibration(Record):
    """`calibration.json` in the user's configuration folder: one entry per device, by its name in words."""

    devices: dict[str, CalibratedMargin] = {}
