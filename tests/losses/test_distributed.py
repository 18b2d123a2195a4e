# SPDX-License-Identifier: MIT
"""Two gloo processes with half of the batch each against one process with all of it."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from solo import losses

pytestmark = pytest.mark.dist
N, D, WORLD = 6, 5, 2


def inputs():
    torch.manual_seed(3)
    return torch.randn(2 * N, D), torch.randn(2 * N, D), torch.arange(N).repeat_interleave(2)


DIRECTIONS = losses.lejepa.draw_directions(D, 7, torch.Generator().manual_seed(0))
CASES = {
    "lejepa": lambda z1, z2, y: losses.lejepa_loss_func(
        torch.stack([z1, z2]), None, 0.3, DIRECTIONS
    ),
    "sigreg": lambda z1, z2, y: losses.sigreg(z1, DIRECTIONS),
    "simclr": lambda z1, z2, y: losses.simclr_loss_func(z1, y),
    "nnclr": lambda z1, z2, y: losses.nnclr_loss_func(z1, z2),
    "mocov3": lambda z1, z2, y: losses.mocov3_loss_func(z1, z2),
    "vicreg": lambda z1, z2, y: losses.vicreg_loss_func(z1, z2),
    "vibcreg": lambda z1, z2, y: losses.vibcreg_loss_func(z1, z2),
    "byol": lambda z1, z2, y: losses.byol_loss_func(z1, z2),
}


def run(name, z1, z2, y):
    z1, z2 = z1.clone().requires_grad_(), z2.clone().requires_grad_()
    loss = CASES[name](z1, z2, y)
    loss.backward()
    zero = torch.zeros_like(z2)
    return loss.detach(), z1.grad, zero if z2.grad is None else z2.grad


def barlow(z1, z2):
    z1 = z1.clone().requires_grad_()
    loss = losses.barlow_loss_func(z1, z2)
    loss.backward()
    return loss.detach(), z1.grad


def worker(rank, store, out):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    mine = slice(rank * N, (rank + 1) * N)
    z1, z2, y = (x[mine] for x in inputs())
    results = {name: run(name, z1, z2, y) for name in CASES}
    results["barlow"] = barlow(z1, z2)
    dino = losses.DINOLoss(D, 0.04, 0.07, 0, 4)
    dino(z1, z2)
    results["center"] = dino.center
    torch.save(results, f"{out}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(worker, (str(folder / "store"), str(folder)), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("name", sorted(CASES))
def test_mean_over_processes_equals_one_process(ranks, name):
    """The gathering backward sums over processes, and DDP then averages: world times the share."""
    loss, *grads = run(name, *inputs())
    torch.testing.assert_close(sum(r[name][0] for r in ranks) / WORLD, loss)
    if name == "mocov3":  # gathered keys have no gradient, those of a single process have
        grads = grads[:1]
    for i, grad in enumerate(grads, start=1):
        torch.testing.assert_close(torch.cat([r[name][i] for r in ranks]) / WORLD, grad)


def test_barlow_averages_the_correlation_and_keeps_the_local_gradient(ranks):
    """Statistics are per process; only the local share of the correlation has a gradient."""
    z1, z2, _ = inputs()
    z1.requires_grad_()

    def standardise(z):
        return (z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt()

    halves = zip(z1.split(N), z2.split(N), strict=True)
    correlation = sum(standardise(a).T @ standardise(b) / N for a, b in halves) / WORLD
    weight = torch.full((D, D), 5e-3).fill_diagonal_(1)
    loss = 0.025 * ((correlation - torch.eye(D)).pow(2) * weight).sum()
    loss.backward()
    for r in ranks:
        torch.testing.assert_close(r["barlow"][0], loss.detach())
    torch.testing.assert_close(torch.cat([r["barlow"][1] for r in ranks]), z1.grad)


def test_dino_center_is_the_mean_over_processes(ranks):
    expected = 0.1 * inputs()[1].mean(0, keepdim=True)
    for r in ranks:
        torch.testing.assert_close(r["center"], expected)
