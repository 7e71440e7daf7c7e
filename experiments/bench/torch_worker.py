"""Times the PyTorch side on request: one JSON request a line on stdin, one JSON answer a line on stdout.

{"do": "build", "case": {...}, "file": "arrays.npz"}   network, weights of ours, comparison of outputs
{"do": "time", "variant": "eager", "count": 20}        wall and processor seconds of so many steps or samplings
"""

import json
import resource
import sys
import time

import numpy as np
import torch
from torch_side import DEVICE, NETWORKS, load


class Points:
    """The mixture on a ring, drawn where the network is."""

    def __init__(self, batch_size):
        angles = 2 * torch.pi * torch.arange(8, device=DEVICE) / 8
        self.means, self.size = 2.0 * torch.stack([angles.cos(), angles.sin()], dim=1), batch_size

    def __call__(self):
        mode = torch.randint(8, (self.size,), device=DEVICE)
        return self.means[mode] + 0.15 * torch.randn(self.size, 2, device=DEVICE), None


class Images:
    """Images and labels held where the network is; a batch is one gather along a fresh permutation of each epoch."""

    def __init__(self, data, label, batch_size):
        self.data, self.label, self.size = data.to(DEVICE), label.to(DEVICE), batch_size
        self.order, self.place = None, len(data)

    def __call__(self):
        if self.place + self.size > len(self.data):
            self.order, self.place = torch.randperm(len(self.data), device=DEVICE), 0
        chosen = self.order[self.place : self.place + self.size]
        self.place += self.size
        return self.data[chosen], self.label[chosen]


class Training:
    """Flow matching with Adam on a cosine, clipping and an average of the weights."""

    def __init__(self, model, batches, classes, total_steps, compiled):
        self.model, self.batches, self.classes = model, batches, classes
        self.call = torch.compile(self.loss) if compiled else self.loss
        self.parameters = list(model.parameters())
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.Adam(self.parameters, lr=2e-3, fused=True)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, total_steps)
        self.total = torch.zeros(2, device=DEVICE)
        self.step = 0

    def loss(self, data, label):
        noise, t = torch.randn_like(data), torch.rand(len(data), device=data.device)
        time = t.view(-1, *[1] * (data.ndim - 1))
        if label is not None:
            label = torch.where(torch.rand(len(data), device=data.device) < 0.1, self.classes, label)
        velocity = self.model(torch.lerp(noise, data, time), t, label)
        return torch.nn.functional.mse_loss(velocity, data - noise)

    def __call__(self, count):
        for _ in range(count):
            self.optimizer.zero_grad(set_to_none=True)
            loss = self.call(*self.batches())
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
            self.optimizer.step()
            self.schedule.step()
            rate = max(0.001, 9 / (10 + self.step))
            torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], rate)
            self.total += torch.stack([loss.detach(), norm])  # what the log reads, now and then
            self.step += 1
        return self.total.sum().item()


class Sampling:
    """Heun's method from noise to data on a uniform grid."""

    def __init__(self, model, shape, count, classes, steps, compiled):
        self.call, self.shape, self.steps = torch.compile(model) if compiled else model, (count, *shape), steps
        self.label = torch.arange(count, device=DEVICE) % classes if classes else None

    @torch.inference_mode()
    def __call__(self, count):
        for _ in range(count):
            x = torch.randn(self.shape, device=DEVICE)
            times = torch.linspace(0, 1, self.steps + 1, device=DEVICE)[:, None].expand(-1, len(x))
            h = 1 / self.steps
            for index in range(self.steps):
                first = self.call(x, times[index], self.label)
                second = self.call(x + h * first, times[index + 1], self.label)
                x = x + 0.5 * h * (first + second)
        return x.sum().item()


def build(case, file):
    """The network with our weights, how far its output is from ours, and the variants to be timed."""
    arrays = dict(np.load(file))
    parameters = {name.removeprefix("p:"): value for name, value in arrays.items() if name.startswith("p:")}
    options = dict(case["torch"])
    if "positions" in arrays:
        options["positions"] = arrays["positions"]

    def network(channels_last=False):
        model = NETWORKS[case["network"]](**options)
        load(model, parameters)
        model.channels_last = channels_last
        return model.to(DEVICE, memory_format=torch.channels_last if channels_last else torch.contiguous_format)

    tensor = lambda name: torch.from_numpy(arrays[name]).to(DEVICE) if name in arrays else None
    model = network()
    with torch.inference_mode():
        output = model(tensor("x"), tensor("t"), tensor("label"))
    difference = (output - tensor("output")).abs().max().item() / tensor("output").abs().max().item()

    def make(variant):
        model, compiled = network(variant == "channels_last"), variant == "compile"
        if case["kind"] == "sample":
            shape = arrays["x"].shape[1:]
            return Sampling(model, shape, case["batch_size"], case["classes"], case["steps"], compiled)
        images = None if case["network"] == "mlp" else Images(tensor("data"), tensor("labels"), case["batch_size"])
        return Training(model, images or Points(case["batch_size"]), case["classes"], 100_000, compiled)

    return make, {"difference": difference, "parameters": sum(p.numel() for p in model.parameters())}


def timed(call, count):
    """Wall and processor seconds of call(count)."""
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    call(count)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    return {"wall": wall, "processor": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


def main():
    """Answers requests until stdin ends; the first argument is the number of threads."""
    torch.set_num_threads(int(sys.argv[1]))
    torch.manual_seed(0)
    answers, sys.stdout = sys.stdout, sys.stderr  # a stray print must not be taken for an answer
    make, calls = None, {}
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
    reply = {"version": torch.__version__, "device": device, "threads": torch.get_num_threads()}
    print(json.dumps(reply), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "build":
                (make, reply), calls = build(request["case"], request["file"]), {}
            else:
                name = request["variant"]
                if name not in calls:
                    calls[name] = make(name)
                reply = timed(calls[name], request["count"])
        except Exception as error:  # reported to the other side, which decides
            reply = {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"}
        print(json.dumps(reply), file=answers, flush=True)


if __name__ == "__main__":
    main()
