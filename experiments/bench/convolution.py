"""Times of 3 x 3 convolutions and of attention on this machine: the measurements behind flowjax/models/convolution.py.

    python experiments/bench/convolution.py [--tiny] [--torch PYTHON] [--out FILE]

Every figure is the best of several runs of the forward pass and both gradients, in milliseconds. The formulations take
turns, so that a busy moment of the machine falls on all of them; read the ratios, not the times. `--torch` names an
interpreter that has PyTorch (default: this one) for the same measurement there, in its default memory layout and in
channels-last; without PyTorch those columns are absent.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

SHAPES = [(b, side, c) for side, b in ((8, 64), (16, 32), (32, 16)) for c in (32, 64, 128)]  # batch, side, channels
ATTENTIONS = [(64, 64, 4, 32), (16, 256, 6, 64)]  # batch, tokens, heads, channels of a head
TINY = ([(2, 8, 8)], [(2, 16, 2, 8)])


def best(calls: dict, rounds: int) -> dict:
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


def measure_jax(shapes, attentions, rounds) -> dict:
    """Both convolutions, and plain attention beside jax.nn.dot_product_attention."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from flowjax.models.attention import attend
    from flowjax.models.convolution import convolve_matmul, convolve_xla

    def with_gradients(function, *inputs):
        def step(cotangent, *inputs):
            output, pull = jax.vjp(function, *inputs)
            return output, pull(cotangent)

        cotangent = jnp.ones(jax.eval_shape(function, *inputs).shape)
        compiled = jax.jit(step)
        return lambda: jax.block_until_ready(compiled(cotangent, *inputs))

    draw = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(draw.normal(size=shape), jnp.float32)
    results = {}
    for batch, side, channels in shapes:
        inputs = normal(batch, side, side, channels), normal(3, 3, channels, channels)
        functions = {"xla": convolve_xla, "matmul": convolve_matmul}
        calls = {name: with_gradients(function, *inputs) for name, function in functions.items()}
        results[f"convolution {batch}x{side}x{side}x{channels}"] = best(calls, rounds)
    for shape in attentions:
        inputs = [normal(*shape) for _ in range(3)]
        functions = {"plain": attend, "jax.nn": jax.nn.dot_product_attention}
        calls = {name: with_gradients(function, *inputs) for name, function in functions.items()}
        results[f"attention {'x'.join(map(str, shape))}"] = best(calls, rounds)
    return results


def measure_torch(shapes, rounds) -> dict:
    """The same convolutions in PyTorch."""
    import torch

    results = {}
    for batch, side, channels in shapes:
        calls = {}
        for name, layout in (("torch", torch.contiguous_format), ("torch channels_last", torch.channels_last)):
            x = torch.randn(batch, channels, side, side).to(memory_format=layout).requires_grad_()
            cotangent = torch.ones(batch, channels, side, side).to(memory_format=layout)
            kernel = torch.randn(channels, channels, 3, 3).requires_grad_()

            def call(x=x, kernel=kernel, cotangent=cotangent):
                output = torch.nn.functional.conv2d(x, kernel, padding=1)
                torch.autograd.grad(output, (x, kernel), cotangent)

            calls[name] = call
        results[f"convolution {batch}x{side}x{side}x{channels}"] = best(calls, rounds)
    return results


def main() -> None:
    """Measures, prints a table of times and their ratios to the first column, and writes JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="one small shape of each kind")
    parser.add_argument("--torch", default=sys.executable, help="an interpreter that has PyTorch")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    shapes, attentions = TINY if options.tiny else (SHAPES, ATTENTIONS)
    if options.worker:
        print(json.dumps(measure_torch(shapes, options.rounds)))
        return
    results = measure_jax(shapes, attentions, options.rounds)
    command = [options.torch, __file__, "--worker", f"--rounds={options.rounds}", *(["--tiny"] if options.tiny else [])]
    worker = subprocess.run(command, capture_output=True, text=True)
    if worker.returncode == 0:
        for name, times in json.loads(worker.stdout).items():
            results[name] |= times
    else:
        print(f"Without PyTorch: {(worker.stderr.strip() or 'the interpreter failed').splitlines()[-1]}")
    for name, times in results.items():
        first = next(iter(times.values()))
        print(f"{name:28}", "  ".join(f"{key} {value:.2f} ms ({value / first:.2f})" for key, value in times.items()))
    if options.out:
        options.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
