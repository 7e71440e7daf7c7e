"""Times of two formulations of the same part of a network: the measurements behind flowjax/models.

    python experiments/bench/formulations.py [--tiny] [--torch PYTHON] [--rounds N]

Every figure is the least of several times of the forward pass and all gradients, over that of the first formulation. The
formulations take turns, so that a busy moment of the machine falls on all of them. `--torch` names an interpreter that
has PyTorch (default: this one) for its convolution, in its default memory layout and in channels-last; without PyTorch
those columns are absent. Writes receipts; `--tiny` only prints.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flowjax.evaluation.receipts import make_receipt, replace_receipts
from flowjax.models.attention import attend
from flowjax.models.convolution import convolve_matmul, convolve_xla
from flowjax.models.dense import Dense

HERE = pathlib.Path(__file__).parent
# part -> shapes
SHAPES = {
    "convolution": [(b, side, side, c) for side, b in ((8, 64), (16, 32), (32, 16)) for c in (32, 64, 128)],
    "attention": [(64, 64, 4, 32), (16, 256, 6, 64)],  # batch, tokens, heads, channels of a head
    "dense": [(64, 64, 128, 512), (64, 64, 512, 128), (256, 256, 2)],  # batch, (tokens,) channels, features
}
TINY = {"convolution": [(2, 8, 8, 8)], "attention": [(2, 16, 2, 8)], "dense": [(2, 8, 8, 16), (8, 8, 2)]}


def with_gradients(function, *inputs):
    """A compiled call of a function and of all its gradients."""

    def step(cotangent, *inputs):
        output, pull = jax.vjp(function, *inputs)
        return output, pull(cotangent)

    cotangent = jnp.ones(jax.eval_shape(function, *inputs).shape)
    compiled = jax.jit(step)
    return lambda: jax.block_until_ready(compiled(cotangent, *inputs))


def convolution(shape, normal) -> dict:
    """3 x 3, as many channels out as in."""
    inputs = normal(*shape), normal(3, 3, shape[-1], shape[-1])
    return {"xla": with_gradients(convolve_xla, *inputs), "matmul": with_gradients(convolve_matmul, *inputs)}


def attention(shape, normal) -> dict:
    """To oneself."""
    inputs = [normal(*shape) for _ in range(3)]
    return {"plain": with_gradients(attend, *inputs), "jax.nn": with_gradients(jax.nn.dot_product_attention, *inputs)}


def dense(shape, normal) -> dict:
    """The last layer of a network: the last number is the features of a kernel."""
    x = normal(*shape[:-1])
    modules = {"ours": Dense(shape[-1]), "flax": nn.Dense(shape[-1])}
    tree = modules["flax"].init(jax.random.key(0), x)
    return {name: with_gradients(module.apply, tree, x) for name, module in modules.items()}


PARTS = {"convolution": convolution, "attention": attention, "dense": dense}


def least(calls: dict, rounds: int) -> dict[str, float]:
    """The least time in milliseconds of each call, the calls taking turns."""
    for call in calls.values():
        call()
    times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: min(values) for name, values in times.items()}


def in_torch(shapes, rounds) -> list[dict[str, float]]:
    """The same convolutions in PyTorch."""
    import torch

    results = []
    for batch, side, _, channels in shapes:
        calls = {}
        for name, layout in (("torch", torch.contiguous_format), ("torch_channels_last", torch.channels_last)):
            x = torch.randn(batch, channels, side, side).to(memory_format=layout).requires_grad_()
            cotangent = torch.ones(batch, channels, side, side).to(memory_format=layout)
            kernel = torch.randn(channels, channels, 3, 3).requires_grad_()

            def call(x=x, kernel=kernel, cotangent=cotangent):
                output = torch.nn.functional.conv2d(x, kernel, padding=1)
                torch.autograd.grad(output, (x, kernel), cotangent)

            calls[name] = call
        results.append(least(calls, rounds))
    return results


def from_torch(options: argparse.Namespace) -> list[dict[str, float]]:
    """What `in_torch` finds in an interpreter that has PyTorch; nothing where there is none."""
    command = [options.torch, __file__, "--worker", f"--rounds={options.rounds}", *(["--tiny"] if options.tiny else [])]
    worker = subprocess.run(command, capture_output=True, text=True)
    if worker.returncode:
        print(f"Without PyTorch: {(worker.stderr.strip() or 'the interpreter failed').splitlines()[-1]}")
        return []
    return json.loads(worker.stdout.splitlines()[-1])


def main() -> None:
    """Measures, prints, and writes receipts unless --tiny."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small shapes, no receipts")
    parser.add_argument("--torch", default=sys.executable, help="an interpreter that has PyTorch and flowjax")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    shapes = TINY if options.tiny else SHAPES
    if options.worker:
        print(json.dumps(in_torch(shapes["convolution"], options.rounds)))
        return
    draw = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(draw.normal(size=shape), jnp.float32)
    receipts = []
    for part, build in PARTS.items():
        start = time.perf_counter()
        measured = [least(build(shape, normal), options.rounds) for shape in shapes[part]]
        if part == "convolution":
            for ours, theirs in zip(measured, from_torch(options)):
                ours |= theirs
        for shape, times in zip(shapes[part], measured):
            label, first = " x ".join(map(str, shape)), next(iter(times.values()))
            print(f"{part:12} {label:20}", "  ".join(f"{k} {v:.2f} ms ({v / first:.2f})" for k, v in times.items()))
            receipts += [
                make_receipt(
                    "time_ratio",
                    value / first,
                    config=dict(part=part, shape=label),
                    config_path="experiments/bench/formulations.py",
                    seed=0,
                    images_seen=0,
                    seconds=time.perf_counter() - start,
                    sampler="none",
                    nfe=None,
                    guidance_scale=None,
                    ema="none",
                    evaluator=f"least of {options.rounds} times, over that of the first formulation",
                    samples=options.rounds,
                    layer=part,
                    shape=label,
                    formulation=name,
                    milliseconds=value,
                    better="lower",
                )
                for name, value in times.items()
            ]
    if not options.tiny:
        replace_receipts(HERE / "receipts", "formulations", receipts)


if __name__ == "__main__":
    main()
