#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Versions:  torch 2.14.1.
# Guess:     torch.native_layer_norm, native_batch_norm and native_group_norm return the normalised
#            tensor, the mean and 1 / standard deviation, and a loss may be made of all three.
# Behaviour: group norm's statistics have a gradient; those of layer norm and batch norm have none,
#            like detached ones, and without a word. What is computed from them has right values
#            and wrong gradients: a norm that takes its mean from there trains as if the mean were
#            a constant.
# Seen:      requires_grad of mean and deviation is True, False, False for group, layer and batch
#            norm. x - mean has a gradient of 1 where it is 3/4 through torch.var_mean.
exec "$(dirname "$0")/run_with" torch==2.14.1 numpy==2.4.6 <<'PYTHON'
import torch

from expect import expect

print(f"torch {torch.__version__}")
x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)

out, *statistics = torch.native_layer_norm(x, (4,), None, None, 1e-5)
mean = x.mean(1, keepdim=True)
expect("the mean's values are right", torch.allclose(statistics[0], mean))
expect(
    "layer norm: the output has a gradient, mean and 1 / deviation have none",
    out.requires_grad and not any(s.requires_grad for s in statistics),
)
images = x.view(2, 4, 1)
out, *statistics = torch.native_batch_norm(images, None, None, None, None, True, 0.1, 1e-5)
expect(
    "batch norm: the same", out.requires_grad and not any(s.requires_grad for s in statistics)
)
_, *statistics = torch.native_group_norm(images, None, None, 2, 4, 1, 1, 1e-5)
expect("group norm: all have one", all(s.requires_grad for s in statistics))


def gradient(mean_of):
    (found,) = torch.autograd.grad((x - mean_of(x))[:, 0].sum(), x)
    return found[0, 0].item()


native = gradient(lambda t: torch.native_layer_norm(t, (4,), None, None, 1e-5)[1])
plain = gradient(lambda t: torch.var_mean(t, 1, keepdim=True)[1])
expect(f"gradient through x - mean: {native:g} and {plain:g}", (native, plain) == (1, 0.75))
PYTHON
