"""How much of a training step on a CPU its convolutions take, were they alone: of plans, with few and many classes.

    python benchmarks/step_share.py --plans OUT/plan.json,OTHER/plan.json [--classes 3,38] [--threads 1]

A step (forward, loss with deep supervision, backward, clipping, optimiser) of each configuration with its planned patch
and batch is timed in turns with its bare convolutions: each convolution and transposed convolution of the step, forward
and backward, on numbers of the same shapes, format and memory order. The rate is their seconds over those of the step.
Each row also has the multiplications a second, by which kernels within a slice (1 x 3 x 3) and others compare: a
configuration that has such kernels is measured with them and with cubes, with 8 features where no run would train it.
Seconds are those of the processor.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from measuring import commit, machine, median, public_command, table, write_results

NARROW = 8
"""features of the first stage, of configurations that are measured for their kernels alone"""


class Call(NamedTuple):
    """One convolution of a step."""

    function: Any
    """of `torch.nn.functional`"""
    input: tuple[int, ...]
    weight: tuple[int, ...]
    rest: tuple[Any, ...]
    """stride and padding"""
    first: bool
    """whether its input is the image, which gets no gradient"""
    products: int


def recorded(model: Any, batch: Any, precision: Any) -> list[Call]:
    """The convolutions of a forward pass in training."""
    import torch
    from torch.nn import functional
    from torch.overrides import TorchFunctionMode

    kinds = {
        functional.conv2d: False,
        functional.conv3d: False,
        functional.conv_transpose2d: True,
        functional.conv_transpose3d: True,
        functional.linear: False,  # how a transposed convolution is computed on a CPU
    }
    calls: list[Call] = []

    class Recorder(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
            result = function(*given, **(named or {}))
            if function in kinds:
                x, weight, _, *rest = given
                if function is functional.linear:
                    products = x.numel() * len(weight)
                else:
                    own = result if not kinds[function] else x
                    products = own[0, 0].numel() * len(x) * math.prod(weight.shape)
                calls.append(Call(function, tuple(x.shape), tuple(weight.shape), tuple(rest), not calls, products))
            return result

    with Recorder(), precision.autocast("cpu"), torch.enable_grad():
        model(batch.image)
    return calls


def bare(calls: list[Call], precision: Any) -> list[Callable[[], None]]:
    """Forward and backward of each call by itself."""
    import torch

    from autounet.nets import convolution

    works = []
    ours = {torch.nn.functional.conv2d: convolution.conv2d, torch.nn.functional.conv3d: convolution.conv3d}
    for call in calls:
        order = torch.contiguous_format
        if precision.channels_last and call.function is not torch.nn.functional.linear:
            order = {4: torch.channels_last, 5: torch.channels_last_3d}[len(call.input)]
        low = torch.bfloat16 if precision.name == "bf16" else torch.float32
        x = torch.randn(call.input).to(low).contiguous(memory_format=order).requires_grad_(not call.first)
        weight = torch.randn(call.weight).contiguous(
            memory_format=order if len(call.weight) > 2 else torch.contiguous_format
        )
        weight.requires_grad_(True)
        function = ours.get(call.function, call.function)

        def work(function: Any = function, x: Any = x, weight: Any = weight, rest: Any = call.rest) -> None:
            x.grad = weight.grad = None
            with precision.autocast("cpu"):
                y = function(x, weight, None, *rest)
            y.backward(torch.ones_like(y))

        works.append(work)
    return works


def seconds(work: Callable[[], None]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def measure(plan: Path, name: str, classes: int, turns: int, cubes: bool = False) -> tuple[str, ...]:
    from autounet.schema.labels import LabelClass, Labels
    from autounet.schema.option_table import run_options
    from autounet.schema.plan import Plan
    from autounet.step import train_step
    from autounet.time_budget.benchmark import InputSize, StepTimer
    from autounet.workflow.defaults import train_options

    planned = Plan.load(plan).configurations[name]
    changes: dict[str, Any] = {"out_channels": classes}
    if not planned.predicted_steps:  # not what a run would train: small, to compare kernels
        changes["features"] = tuple(each * NARROW // planned.network.features[0] for each in planned.network.features)
    if cubes:
        changes["kernel_sizes"] = ((3, 3, 3),) * len(planned.network.features)
    network = planned.network.model_copy(update=changes)
    batch_size = planned.batch_size if planned.predicted_steps else 1
    planned = planned.model_copy(update={"targets": "classes", "network": network, "batch_size": batch_size})
    labels = Labels(classes=tuple(LabelClass(name=f"c{value}", value=value) for value in range(classes)))
    options = train_options(run_options(()), planned.predicted_steps or 1000, planned.network.dims)
    timer = StepTimer(planned, labels, options, "cpu")
    batch = timer._batch(InputSize(patch=planned.patch_size, batch=planned.batch_size))
    timer.model.train()
    calls = recorded(timer.model, batch, timer.precision)
    works = bare(calls, timer.precision)

    def step() -> None:
        train_step(
            timer.model, timer.loss, timer.optimiser, timer.scaler, batch, timer.precision, options.gradient_clip
        )

    def convolutions() -> None:
        for work in works:
            work()

    step(), convolutions()
    whole, alone = zip(*((seconds(step), seconds(convolutions)) for _ in range(turns)), strict=True)
    rates = [one / other for one, other in zip(alone, whole, strict=True)]
    through = [call for call in calls if len(call.weight) == 5 and call.weight[2] == 1]
    products = 3 * sum(call.products for call in calls)
    kernels = sum(call.products for call in through) / sum(call.products for call in calls)
    size = " x ".join(map(str, (planned.batch_size, *planned.patch_size)))
    return (
        f"{plan.parent.name}, {name}",
        f"{size}, {network.features[0]} features, {planned.precision}",
        str(classes),
        f"{median(whole):.3f}",
        f"{median(alone):.3f}",
        f"{median(rates):.0%}",
        f"{kernels:.0%}",
        f"{products / median(whole) / 1e9:.1f}",
        f"{products / median(alone) / 1e9:.1f}",
    )


HEADER = (
    "configuration",
    "input",
    "classes",
    "s/step",
    "s/its convolutions",
    "rate",
    "products in 1 x 3 x 3",
    "10^9 products/s",
    "of the convolutions",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", required=True)
    parser.add_argument("--classes", default="3,38")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results"))
    given = parser.parse_args()
    import torch

    from autounet.schema.plan import Plan

    torch.set_num_threads(given.threads)
    rows = []
    for plan in map(Path, given.plans.split(",")):
        for name, own in Plan.load(plan).configurations.items():
            thin = any(kernel[0] == 1 for kernel in own.network.kernel_sizes if len(kernel) == 3)
            for classes in map(int, given.classes.split(",")):
                for cubes in [False, True] if thin else [False] if own.predicted_steps else []:
                    rows.append(measure(plan, name, classes, given.turns, cubes))
                    print(*rows[-1], sep=" | ", flush=True)
    text = f"""# What convolutions take of a training step

- command: `python {public_command([f"benchmarks/{Path(__file__).name}", *sys.argv[1:]])}`
- machine: {machine()}, {given.threads} thread{"s" if given.threads > 1 else ""}
- commit: {commit()}

{table(HEADER, rows)}
"""
    write_results("step_share", text, given.results)


if __name__ == "__main__":
    main()
