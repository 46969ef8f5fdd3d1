"""Size-proportional attention, whichever attention function the user chooses, and whenever.

A slot that stands for n tokens gets log n added to its scores, so that softmax counts it n times. Source: Bolya et al.,
"Token Merging: Your ViT But Faster", ICLR 2023, section 3 (proportional attention).

The config keeps saying what the user chose. Only the attention modules behind a merger see another name there, that of
`sized_attention`, which adds the sizes and calls the chosen function.

A merger inside a block reads what attention computes there: keys, or the attention that each token receives.

Legend: B clips, A heads, Q queries, K keys, D channels of a head, N tokens; F frames and M slots of a grid.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sttm.errors import SttmError
from sttm.patching.state import Step, StepSlots, local

#: The name of `sized_attention` in transformers' interface.
SIZED = "sttm_sized"
#: Attention kernels want a head of a multiple of 8 channels.
KERNEL_CHANNELS = 8


class ConfigView:
    """A config as one module sees it: some settings are its own, all others are those of the config behind it."""

    def __init__(self, config: Any, **own: Any) -> None:
        self.__dict__.update(_config=config, _own=own)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_config" not in self.__dict__:
            raise AttributeError(name)
        return self._own[name] if name in self._own else getattr(self._config, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._config, name, value)


class SizedConfig(ConfigView):
    """The config that an attention module sees: while slots wait to be weighed, attention is `sized_attention`."""

    @property
    def _attn_implementation(self) -> Any:
        return SIZED if local.slots is not None else self._config._attn_implementation


def sized_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """Attend by the function that the user chose, each key counting by its size: [B A Q D] -> [B Q A D]."""
    slots, local.slots = local.slots, None
    config: Any = module.config
    chosen: str = config._attn_implementation
    if options.get("scaling") is None:
        options["scaling"] = query.shape[-1] ** -0.5
    bias = None if slots is None or slots.log_size_BN is None else slots.log_size_BN[:, None, None]
    if isinstance(slots, StepSlots):
        local.steps.append(slots.step)
        # The class token is the first of the prefix.
        queries = query[:, :, : min(slots.prefix, 1) or None]
        _read(slots.step, queries, key, bias, options["scaling"], options.get("softcap"))
    # A mask that a model makes for its plain tokens hides none of them; one of the user's is refused (OpenForward).
    attention_mask = None if bias is None else bias.to(query.dtype)
    if chosen not in ("eager", "sdpa") and bias is not None:
        if options.get("softcap") is not None:
            raise SttmError(
                f"{chosen} has no exact form of sizes with scores that are softly capped; choose 'eager' by "
                "model.set_attn_implementation"
            )
        (query, key), attention_mask = folded(query, key, bias, options["scaling"]), None
    # "eager" is in no interface: each family has a function of its own, and they do not all take a bias.
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(chosen, _eager)
    return attend(module, query, key, value, attention_mask, **options)


@torch.no_grad()
def _read(step: Step, query: Tensor, key: Tensor, bias: Tensor | None, scaling: float, softcap: float | None) -> None:
    """Keep what the merger of a step reads of the attention; a recomputation has the map already."""
    if step.map is None:
        keys = step.reads == "keys"
        step.cue_BNE = key.mean(1) if keys else received(query, key, bias, scaling, softcap)[..., None]


def received(
    query: Tensor, key: Tensor, bias_B11K: Tensor | None, scaling: float, softcap: float | None = None
) -> Tensor:
    """Return the attention that each key receives, averaged over queries and heads: [B A Q D], [B A K D] -> [B K]."""
    each = []
    # Head by head: all probabilities at once would be the largest tensor of the model.
    for query_BQD, key_BKD in zip(query.unbind(1), key.unbind(1), strict=True):
        score_BQK = _capped((query_BQD * scaling) @ key_BKD.transpose(-1, -2), softcap)
        score_BQK = score_BQK if bias_B11K is None else score_BQK + bias_B11K[:, 0]
        each.append(score_BQK.softmax(-1, dtype=torch.float32).mean(1))
    return torch.stack(each).mean(0)


def _capped(scores: Tensor, softcap: float | None) -> Tensor:
    """Return scores that grow no further than the cap of a model that has one."""
    return scores if softcap is None else (scores / softcap).tanh() * softcap


def folded(query: Tensor, key: Tensor, bias_B11K: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Return queries and keys whose products hold the bias: [B A Q D], [B A K D] -> [B A Q D+], [B A K D+].

    Exact, and no mask is needed: the queries get ones, the keys the bias over the scaling. Kernels that take no bias
    (flash attention among them) thus count sizes too. The bias goes into two channels, as one of half precision would
    round it.
    """
    extra = KERNEL_CHANNELS - query.shape[-1] % KERNEL_CHANNELS
    extra += KERNEL_CHANNELS if extra < 2 else 0
    # [B 1 1 K] -> [B A K 1]
    bias_BAK1 = (bias_B11K / scaling).transpose(-1, -2).expand(-1, key.shape[1], -1, 1)
    coarse_BAK1 = bias_BAK1.to(key.dtype)
    fine_BAK1 = (bias_BAK1 - coarse_BAK1.to(bias_BAK1.dtype)).to(key.dtype)
    zeros_BAKE = key.new_zeros(*key.shape[:-1], extra - 2)
    ones_BAQE = nn.functional.pad(query.new_ones(*query.shape[:-1], 2), (0, extra - 2))
    return torch.cat((query, ones_BAQE), -1), torch.cat((key, coarse_BAK1, fine_BAK1, zeros_BAKE), -1)


def _eager(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor]:
    """Attend step by step, for those who want the probabilities: [B A Q D] -> [B Q A D], [B A Q K]."""
    scores = _capped(query @ key.transpose(-1, -2) * options["scaling"], options.get("softcap"))
    probabilities = (scores if bias is None else scores + bias).softmax(-1, dtype=torch.float32).to(query.dtype)
    dropped = nn.functional.dropout(probabilities, options.get("dropout", 0.0), module.training)
    return (dropped @ value).transpose(1, 2).contiguous(), probabilities


AttentionInterface.register(SIZED, sized_attention)


class WeighProbabilities:
    """Weigh attention probabilities by the sizes of the keys, where attention is written out: [B A Q K] alike."""

    def __init__(self, over: str) -> None:
        self.over = over

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        slots = local.slots
        assert slots is not None, "attention ran without its slots"
        if slots.log_size_BN is None:
            return (args[0],)
        if self.over == "place":
            # [B F M] -> [B*M F]: a sequence a place, without prefix tokens
            size_BK = slots.size_BFM.transpose(1, 2).flatten(0, 1)
        elif self.over == "frame":
            # [B F M] -> [B*F P+M]: a sequence a frame, the prefix tokens first
            size_BK = nn.functional.pad(slots.size_BFM.flatten(0, 1), (slots.prefix, 0), value=1.0)
        else:
            size_BK = slots.log_size_BN.exp()
        weighed = args[0] * size_BK[:, None, None].to(args[0].dtype)
        total = weighed.sum(-1, keepdim=True).clamp(min=torch.finfo(weighed.dtype).tiny)
        # In place where no gradient needs both: a new tensor of that size costs more than the division.
        return (weighed / total if torch.is_grad_enabled() else weighed.div_(total),)
