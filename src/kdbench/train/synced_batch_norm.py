"""Batch norm over the images of several processes, for any network that calls `torch.nn.functional.batch_norm`.

`torch.nn.SyncBatchNorm` needs a GPU and replaces modules of torch alone; here the function itself is replaced while a
network is called, so that subclasses of other libraries are synchronised too, on every device.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from kdbench.system.world import World


class SyncedBatchNorm(TorchFunctionMode):
    """Context in which batch norm in training mode uses the statistics of the images of all processes.

    Args:
        world: the processes; each of them calls the same functions in the same order.
    """

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.batch_norm:
            return self.batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def batch_norm(
        self,
        input: Tensor,  # the names of torch's function: they may be given by keyword
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """Return the normalised input, and update the running statistics. Arguments: see torch."""
        if not training:
            return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
        output, mean, var, count = BatchNormOverProcesses.apply(input, weight, bias, eps, self.world)
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                unbiased = var * (count / (count - 1).clamp_min(1))
                running_var.lerp_(unbiased.to(running_var.dtype), momentum)
        return output


class BatchNormOverProcesses(torch.autograd.Function):
    """Normalise by mean and variance over the images of all processes:

        y = (x - mean) / sqrt(var + eps) * weight + bias

    Each process sends its mean, its sum of squared deviations and its count, which are combined exactly (Chan et al.
    1983); backward, the sums of the gradient and of its product with the normalised input.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, world: World
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dims = [0, *range(2, x.ndim)]
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        images = x.numel() // x.shape[1]
        own_var, own_mean = torch.var_mean(wide, dims, correction=0)
        own = torch.stack([own_mean, own_var * images, torch.full_like(own_mean, images)])
        parts = world.gather(own[None], world.size)
        means, squares, counts = parts.unbind(1)
        count = counts.sum(0)
        mean = (means * counts).sum(0) / count
        var = (squares.sum(0) + (counts * (means - mean) ** 2).sum(0)) / count
        scale = (var + eps).rsqrt()
        shape = [1, -1, *[1] * (x.ndim - 2)]
        normalised = (wide - mean.view(shape)) * scale.view(shape)
        output = normalised
        if weight is not None:
            output = output * weight.view(shape)
        if bias is not None:
            output = output + bias.view(shape)
        ctx.save_for_backward(x, weight, mean, scale, count)
        ctx.world, ctx.has_bias = world, bias is not None
        ctx.mark_non_differentiable(mean, var, count)
        return output.to(x.dtype), mean, var, count

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, count = ctx.saved_tensors
        dims, shape = [0, *range(2, x.ndim)], [1, -1, *[1] * (x.ndim - 2)]
        grad_wide = grad.to(mean.dtype)
        normalised = (x.to(mean.dtype) - mean.view(shape)) * scale.view(shape)
        own_sums = torch.stack([grad_wide.sum(dims), (grad_wide * normalised).sum(dims)])
        grad_weight = own_sums[1].to(weight.dtype) if weight is not None else None
        grad_bias = own_sums[0].clone() if ctx.has_bias else None
        sums = ctx.world.add(own_sums.clone()) / count
        inner = grad_wide - sums[0].view(shape) - normalised * sums[1].view(shape)
        factor = scale if weight is None else scale * weight
        return (inner * factor.view(shape)).to(x.dtype), grad_weight, grad_bias, None, None
