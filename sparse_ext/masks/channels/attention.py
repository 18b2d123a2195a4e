# SPDX-License-Identifier: MIT
"""Attention whose heads are no longer as wide as the stream: forward passes of known modules.

Libraries write `x.reshape(B, N, C)` behind attention with the width C of its *input*, or take the
scale of the logits from a width, which ties heads x dimensions to the residual stream. `adapt`
gives such modules a subclass with the same parameters and the same result that reads the inner
width from the weights and keeps the scale that the full network had. Of other modules with timm's
switch `fused_attn` it takes the path that multiplies by their stored `scale`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_ext.masks.channels.subclasses import subclass


def _heads(self: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
    """Tokens (B, N, C) to queries, keys and values, each (B, heads, N, dim)."""
    qkv = F.linear(x, weight, bias).unflatten(-1, (3, self.num_heads, -1))
    return qkv.permute(2, 0, 3, 1, 4).unbind(0)


def _dropped(self: Any, x: Tensor) -> float:
    return self.attn_drop.p if self.training else 0.0


def _timm_qkv(self: Any, x: Tensor) -> tuple[Tensor, ...]:
    """As `_heads`, with the biases of EVA and Swin V2, whose keys may have none."""
    bias = self.qkv.bias
    if getattr(self, "q_bias", None) is not None:
        extra = torch.cat((self.q_bias, self.k_bias, self.v_bias))
        bias = extra if bias is None else bias + extra
    return _heads(self, x, self.qkv.weight, bias)


def _vit(self: Any, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    """timm's attention of ViT and MetaFormer."""
    q, k, v = _heads(self, x, self.qkv.weight, self.qkv.bias)
    if hasattr(self, "q_norm"):
        q, k = self.q_norm(q), self.k_norm(k)
    x_out = F.scaled_dot_product_attention(
        q, k, v, attn_mask, dropout_p=_dropped(self, x), is_causal=bool(is_causal), scale=self.scale
    )
    out = x_out.transpose(1, 2).flatten(2)
    out = self.norm(out) if hasattr(self, "norm") else out
    if getattr(self, "gate", None) is not None:
        out = out * self.gate(x).sigmoid()
    return self.proj_drop(self.proj(out))


def _eva(
    self: Any,
    x: Tensor,
    rope: Tensor | None = None,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    """timm's attention of EVA, rotary positions included."""
    if self.qkv is not None:
        q, k, v = _timm_qkv(self, x)
    else:
        parts = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (p(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for p in parts)
    q, k = self.q_norm(q), self.k_norm(k)
    if rope is not None:
        from timm.layers import apply_rot_embed_cat

        n, half = self.num_prefix_tokens, getattr(self, "rotate_half", False)
        q, k = (
            torch.cat([t[:, :, :n], apply_rot_embed_cat(t[:, :, n:], rope, half=half)], 2).type_as(
                v
            )
            for t in (q.type_as(v), k.type_as(v))
        )
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask, dropout_p=_dropped(self, x), is_causal=bool(is_causal), scale=self.scale
    )
    out = self.norm(out.transpose(1, 2).flatten(2))
    if getattr(self, "gate", None) is not None:
        out = out * self.gate(x).sigmoid()
    return self.proj_drop(self.proj(out))


def _swin_v2(self: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """timm's cosine attention in windows (Swin V2)."""
    q, k, v = _timm_qkv(self, x)
    attn = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
    attn = attn * torch.clamp(self.logit_scale, max=math.log(100.0)).exp()
    table = self.cpb_mlp(self.relative_coords_table).view(-1, self.num_heads)
    n = x.shape[1]
    bias = table[self.relative_position_index.view(-1)].view(n, n, -1).permute(2, 0, 1)
    attn = attn + (16 * torch.sigmoid(bias)).unsqueeze(0)
    if mask is not None:
        attn = (attn.unflatten(0, (-1, mask.shape[0])) + mask.unsqueeze(1)).flatten(0, 1)
    out = self.attn_drop(self.softmax(attn)) @ v
    return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))


def _windows(self: Any, x: Tensor) -> Tensor:
    """torchvision's shifted windows, of both Swin versions: (B, H, W, C) to the same."""
    (height, width), (_, h, w, _) = self.window_size, x.shape
    x = F.pad(x, (0, 0, 0, -w % width, 0, -h % height))
    rows, columns = x.shape[1] // height, x.shape[2] // width
    down = 0 if rows == 1 else self.shift_size[0]
    right = 0 if columns == 1 else self.shift_size[1]
    if down or right:
        x = torch.roll(x, (-down, -right), (1, 2))
    x = x.unflatten(1, (rows, height)).unflatten(3, (columns, width)).transpose(2, 3)
    out = _window_attention(self, x.flatten(3, 4).flatten(0, 2), rows, columns, down, right)
    out = F.dropout(F.linear(out, self.proj.weight, self.proj.bias), self.dropout, self.training)
    out = out.unflatten(0, (-1, rows, columns)).unflatten(3, (height, width)).transpose(2, 3)
    out = out.flatten(3, 4).flatten(1, 2)
    if down or right:
        out = torch.roll(out, (down, right), (1, 2))
    return out[:, :h, :w].contiguous()


def _window_attention(
    self: Any, x: Tensor, rows: int, columns: int, down: int, right: int
) -> Tensor:
    bias, cosine = self.qkv.bias, hasattr(self, "logit_scale")
    if cosine and bias is not None:
        first, keys, last = bias.chunk(3)
        bias = torch.cat((first, keys * 0, last))  # keys have none
    q, k, v = _heads(self, x, self.qkv.weight, bias)
    if cosine:
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        attn = q @ k.transpose(-2, -1) * torch.clamp(self.logit_scale, max=math.log(100.0)).exp()
    else:
        attn = (q * self.scale) @ k.transpose(-2, -1)
    attn = attn + self.get_relative_position_bias()
    if down or right:
        mask = _shift_mask(x, self.window_size, rows, columns, down, right)
        attn = (attn.unflatten(0, (-1, rows * columns)) + mask.unsqueeze(1)).flatten(0, 1)
    attn = F.dropout(attn.softmax(-1), self.attention_dropout, self.training)
    return (attn @ v).transpose(1, 2).flatten(2)


def _shift_mask(
    x: Tensor, window: list[int], rows: int, columns: int, down: int, right: int
) -> Tensor:
    """-100 between places that the cyclic shift has brought together: (windows, N, N)."""
    parts = []
    for n, side, shift in ((rows, window[0], down), (columns, window[1], right)):
        place = torch.arange(n * side, device=x.device)
        part = (place >= n * side - side).long() + (place >= n * side - shift).long()
        parts.append(part if shift else torch.zeros_like(part))
    region = 3 * parts[0][:, None] + parts[1]
    region = (
        region.view(rows, window[0], columns, window[1]).transpose(1, 2).flatten(2).flatten(0, 1)
    )
    return (region[:, None] != region[:, :, None]).to(x.dtype) * -100.0


def _maxvit(self: Any, x: Tensor) -> Tensor:
    """torchvision's attention with relative positions of MaxViT: (B, G, P, C) to the same."""
    qkv = self.to_qkv(x).unflatten(-1, (3, self.n_heads, -1)).permute(3, 0, 1, 4, 2, 5)
    q, k, v = qkv.unbind(0)
    attn = q @ (k * self.scale_factor).transpose(-2, -1) + self.get_relative_positional_bias()
    out = attn.softmax(-1) @ v
    return self.merge(out.transpose(2, 3).flatten(3))


def _multihead(
    self: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """`nn.MultiheadAttention` of one sequence with itself, without masks."""
    itself = query is key and key is value and query.ndim == 3
    plain = key_padding_mask is None and attn_mask is None and self.bias_k is None
    if not (itself and plain and not self.add_zero_attn and self.in_proj_weight is not None):
        return nn.MultiheadAttention.forward(
            self, query, key, value, key_padding_mask, need_weights, attn_mask,
            average_attn_weights, is_causal,
        )  # fmt: skip
    x = query if self.batch_first else query.transpose(0, 1)
    q, k, v = _heads(self, x, self.in_proj_weight, self.in_proj_bias)
    weights = None
    if need_weights:
        weights = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1)
        out = F.dropout(weights, self.dropout, self.training) @ v
        weights = weights.mean(1) if average_attn_weights else weights
    else:
        drop = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=drop, scale=self.scale)
    out = F.linear(out.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
    return (out if self.batch_first else out.transpose(0, 1)), weights


FORWARDS: dict[str, Callable] = {
    "torch.nn.modules.activation.MultiheadAttention": _multihead,
    "torchvision.models.swin_transformer.ShiftedWindowAttention": _windows,
    "torchvision.models.swin_transformer.ShiftedWindowAttentionV2": _windows,
    "torchvision.models.maxvit.RelativePositionalMultiHeadAttention": _maxvit,
    "timm.layers.attention.Attention": _vit,
    "timm.models.vision_transformer.Attention": _vit,
    "timm.models.metaformer.Attention": _vit,
    "timm.models.eva.EvaAttention": _eva,
    "timm.models.swin_transformer_v2.WindowAttention": _swin_v2,
}


def adapt(net: nn.Module) -> list[tuple[nn.Module, type, dict[str, Any]]]:
    """Give the attention modules of a network forward passes that read their inner width, in place.

    Returns:
        what `restore` needs: modules, their class and attributes before.
    """
    before: list[tuple[nn.Module, type, dict[str, Any]]] = []
    for module in net.modules():
        kind = type(module)
        forward = FORWARDS.get(f"{kind.__module__}.{kind.__qualname__}")
        if forward is not None and _usable(module):
            before.append((module, kind, {}))
            if not hasattr(module, "scale") and hasattr(module, "num_heads"):
                width = getattr(module, "embed_dim", None) or module.qkv.in_features  # type: ignore
                module.scale = (width // module.num_heads) ** -0.5  # type: ignore
                before[-1][2]["scale"] = None
            module.__class__ = subclass(kind, forward)
        elif getattr(module, "fused_attn", False) is True and hasattr(module, "scale"):
            before.append((module, kind, {"fused_attn": True}))
            module.fused_attn = False  # type: ignore[assignment]
    return before


def _usable(module: nn.Module) -> bool:
    """Whether the forward pass here is that of the module: one weight for q, k and v."""
    packed = getattr(module, "in_proj_weight", None) is not None
    return packed or not isinstance(module, nn.MultiheadAttention)


def restore(before: list[tuple[nn.Module, type, dict[str, Any]]]) -> None:
    """Give the modules the classes and attributes back that they had before `adapt`."""
    for module, kind, values in before:
        module.__class__ = kind
        for name, value in values.items():
            if value is None:
                delattr(module, name)
            else:
                setattr(module, name, value)


def restore_switches(before: list, keep: set[nn.Module]) -> None:
    """Fused attention again where the scale it takes is still that of the full network."""
    restore([b for b in before if b[2].get("fused_attn") and b[0] not in keep])


@contextlib.contextmanager
def adapted(net: nn.Module) -> Iterator[None]:
    """A network that is adapted for a while."""
    before = adapt(net)
    try:
        yield
    finally:
        restore(before)
