"""Linear layers of several experts as one operation, given the two grouped products of a device."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Products(NamedTuple):
    """Grouped products of a device. counts (X,): rows of each group, int64 on the device; R, their sum, is not 0."""

    multiply: Callable[[Tensor, list[Tensor], Tensor], Tensor]
    """(rows (R, a), X matrices (a, b), counts) to (R, b): the rows of a group times its matrix."""
    sum_outer: Callable[[Tensor, Tensor, Tensor], Tensor]
    """((R, a), (R, b), counts) to (X, a, b): for each group, the sum of its rows' outer products."""


class GroupedLinear(torch.autograd.Function):
    """`apply(products, rows (R, in), counts, X weights (out, in))` gives (R, out).

    Only the weights themselves are kept for the backward pass, also where a product takes a copy of them. Without rows
    no product is computed: the pages of the devices' functions say nothing about empty tensors.
    """

    @staticmethod
    def forward(ctx, products, rows, counts, *weights):
        ctx.products = products
        ctx.save_for_backward(rows, counts, *weights)
        if not len(rows):
            return rows.new_empty((0, len(weights[0])))
        return products.multiply(rows, [weight.t() for weight in weights], counts)

    @staticmethod
    def backward(ctx, grad):
        rows, counts, *weights = ctx.saved_tensors
        if not len(rows):
            return None, torch.empty_like(rows), None, *map(torch.zeros_like, weights)
        grad = grad.contiguous()
        grad_rows = ctx.products.multiply(grad, weights, counts) if ctx.needs_input_grad[1] else None
        if not any(ctx.needs_input_grad[3:]):
            return None, grad_rows, None, *[None] * len(weights)
        return None, grad_rows, None, *ctx.products.sum_outer(grad, rows, counts).unbind()
