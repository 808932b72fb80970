"""The simulated device itself: that it is another device, and computes as the CPU does."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from device import simulated

pytestmark = pytest.mark.usefixtures("simulated_device")
CPU = torch.arange(6.0).view(2, 3)

REFUSED: dict[str, Callable[[Tensor], object]] = {
    "a sum of both kinds": lambda x: x + CPU,
    "a product of both kinds": lambda x: x @ CPU.T,
    "a layer on the CPU": nn.Linear(3, 2),
    "rows of both kinds": lambda x: torch.cat([x, CPU]),
    "numpy": lambda x: x.numpy(),
    "from numpy": lambda x: x * torch.from_numpy(np.ones((2, 3), np.float32)),
    "device into CPU": lambda x: CPU.clone().add_(x),
    "CPU into device": lambda x: x.clone().add_(CPU),
    "out on the CPU": lambda x: torch.add(x, x, out=torch.empty(2, 3)),
    "a scalar of the device into one of the CPU": lambda x: torch.zeros(()).add_(x.sum()),
    "a scalar of the CPU where CUDA wants its own": lambda x: torch.stack([x.sum(), torch.zeros(())]),
    "an index on the device into the CPU": lambda x: CPU[x[0].long() > 1],
    "gather by an index on the CPU": lambda x: x.gather(1, torch.zeros(2, 1, dtype=torch.int64)),
    "a weight on the CPU": lambda x: nn.functional.conv2d(x.view(1, 1, 2, 3), torch.ones(1, 1, 1, 1)),
    "products of integers": lambda x: x.long() @ x.long().t(),
    "random numbers of the CPU": lambda x: x.normal_(generator=torch.Generator()),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cuda_refuses_is_refused(what: str, device: str) -> None:
    with pytest.raises((RuntimeError, TypeError)):
        REFUSED[what](CPU.to(device))


def test_what_cuda_takes_from_the_cpu_is_taken(device: str) -> None:
    x = CPU.to(device)
    assert torch.equal((x + torch.tensor(2.0)).cpu(), CPU + 2)
    assert torch.equal(torch.where(x > 2, x, torch.tensor(9.0)).cpu(), torch.where(CPU > 2, CPU, 9.0))
    assert torch.equal(x[torch.tensor([1, 0])].cpu(), CPU[[1, 0]])
    x[torch.tensor([1])] = torch.tensor(7.0)
    assert x.tolist() == [[0, 1, 2], [7, 7, 7]]


def test_views_share_memory_and_what_is_written_by_others_is_seen(device: str) -> None:
    home = torch.zeros(8, device=device)
    home[2:].as_strided((2, 2), (1, 2)).copy_(CPU[:, :2])
    assert home.tolist() == [0, 0, 0, 3, 1, 4, 0, 0]
    layer = nn.Linear(2, 2, bias=False).to(device)
    layer.weight.data = home[:4].view(2, 2)
    home.fill_(1.0)
    assert layer.weight.sum().item() == 4.0
    assert layer.weight.detach().data_ptr() == home.data_ptr()
    torch.sqrt(home * 4, out=home)
    assert layer.weight.tolist() == [[2, 2], [2, 2]]


def test_what_is_written_may_grow(device: str) -> None:
    x, out = CPU.to(device), torch.empty(0, device=device)
    assert torch.add(x, x, out=out) is out
    assert torch.equal(out.cpu(), 2 * CPU)
    assert out.device.type == device
    out.resize_(3, 3)[2] = 1.0
    assert out.sum().item() == 33.0


def test_traffic_is_counted(device: str) -> None:
    simulated.reset_traffic()
    x = CPU.to(device)
    y = x * 2
    assert simulated.traffic() == simulated.Traffic(0, 0, 0, 1, 24, 0, 0, 1)
    assert y.view(3, 2).t()[0, 1].item() == 4.0
    assert bool(y.sum() > 1)
    y.cpu()
    assert y[y > 4].shape == (3,)
    assert simulated.traffic() == simulated.Traffic(2, 1, 24, 1, 24, 0, 1, 5)
    simulated.reset_traffic()
    assert not any(simulated.traffic())


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(5, 3), (4, 5)),
    "convolution": (lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1), (2, 3, 9, 9)),
    "convolution without bias": (lambda: nn.Conv2d(3, 6, (3, 1), groups=3, bias=False), (2, 3, 9, 9)),
    "maximum": (lambda: nn.MaxPool2d(3, 2, padding=1), (2, 3, 9, 9)),
    "lstm": (lambda: nn.LSTM(5, 4), (6, 2, 5)),
    "lstm without bias": (lambda: nn.LSTM(5, 4, bias=False), (6, 2, 5)),
    "gru": (lambda: nn.GRU(5, 4), (6, 2, 5)),
    "gru without bias": (lambda: nn.GRU(5, 4, bias=False), (6, 2, 5)),
}


def with_gradients(layer: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    output = layer(x)
    output = output[0] if isinstance(output, tuple) else output
    output.pow(2).sum().backward()
    return [tensor.detach().cpu() for tensor in (output, x.grad, *(p.grad for p in layer.parameters()))]


@pytest.mark.parametrize("kind", LAYERS)
def test_layers_and_their_gradients_are_those_of_the_cpu(kind: str, device: str) -> None:
    make, shape = LAYERS[kind]
    torch.manual_seed(0)
    on_cpu, x = make(), torch.randn(shape)
    on_device = copy.deepcopy(on_cpu).to(device)
    for found, expected in zip(with_gradients(on_device, x.to(device)), with_gradients(on_cpu, x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_random_numbers_are_seeded_and_leave_the_cpus_alone(device: str) -> None:
    drawn, beside = [], []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append(torch.randn(4, device=device).cpu())
        beside.append(torch.randn(4))
    assert torch.equal(*drawn)
    torch.manual_seed(3)
    assert torch.equal(torch.randn(4), beside[0])


def test_modules_are_copied_and_pickled_on_it(device: str) -> None:
    layer = nn.Linear(3, 2).to(device)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin.weight.device.type == device
        assert twin.weight.data_ptr() != layer.weight.data_ptr()
        assert torch.equal(twin.weight.cpu(), layer.weight.cpu())


def test_bfloat16_is_chosen_by_autocast(device: str) -> None:
    x = CPU.to(device)
    with torch.autocast(device, torch.bfloat16):
        assert (x @ x.t()).dtype == torch.bfloat16
        assert (x @ x.t()).float().exp().dtype == torch.float32
        with torch.autocast(device, enabled=False):
            assert (x @ x.t()).dtype == torch.float32
    assert (x @ x.t()).dtype == torch.float32


def test_copies_that_nobody_waits_for_are_done_when_the_host_next_waits(device: str) -> None:
    simulated.reset_traffic()
    pinned, landed = CPU.pin_memory(), torch.zeros(2, 3).pin_memory()
    assert pinned.is_pinned()
    assert not CPU.is_pinned()
    x = pinned.to(device, non_blocking=True)
    landed.copy_(x, non_blocking=True)
    x.fill_(9.0)  # behind the copy in the device's stream
    assert landed.isnan().all()
    torch.accelerator.synchronize()
    assert torch.equal(landed, CPU)
    assert simulated.traffic()[:7] == (0, 1, 24, 1, 24, 2, 1)
    # From and to memory that is not pinned, everything is done at once.
    assert torch.equal(torch.empty(2, 3).copy_(CPU.to(device, non_blocking=True), non_blocking=True), CPU)
    assert x.to("cpu", non_blocking=True).isnan().all()  # which torch pins by itself


def test_host_memory_is_not_to_be_written_while_it_is_copied(device: str) -> None:
    pinned = CPU.pin_memory()
    x = pinned.to(device, non_blocking=True)
    pinned += 1.0
    with pytest.raises(RuntimeError, match="written while a non-blocking copy"):
        x.sum().item()
    assert x.sum().item() == CPU.sum()
