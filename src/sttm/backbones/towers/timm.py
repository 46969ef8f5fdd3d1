"""timm's VisionTransformer, by itself or in transformers' TimmWrapper; known by name, so that timm need not be there.

Its attention takes a bias on the scores, by which sizes reach it; its pooling (class token, mean, maximum, attention)
is of timm's own making, so that the tokens come back as the first grid before it. timm's own gradient checkpointing
runs whole ranges of blocks a second time, and is refused.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from sttm.backbones.base import Attention, Grid, Layer, linear_macs
from sttm.backbones.towers.tower import Tower
from sttm.errors import NAME, SttmError, quoted


class TimmViT(Tower):
    family = "timm-vit"
    example = "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k"
    classes = ("VisionTransformer", "TimmWrapperForImageClassification", "TimmWrapperModel")
    restores = True

    def base(self, model: Any) -> Any:
        return getattr(model, "timm_model", model)

    def classifies(self, model: Any) -> bool:
        return type(model).__name__ == "TimmWrapperForImageClassification"

    def check(self, model: Any) -> None:
        tower = self.base(model)
        blocks = getattr(tower, "blocks", ())
        kinds = {f"{type(block).__name__} with {type(getattr(block, 'attn', None)).__name__}" for block in blocks}
        if type(tower).__module__.partition(".")[0] != "timm" or kinds != {"Block with Attention"}:
            what = f"a {quoted(type(tower).__name__, NAME)} of {quoted(type(tower).__module__, NAME)}"
            raise SttmError(f"{what} is no VisionTransformer of timm with its plain blocks; give one that is")
        if tower.patch_embed.img_size is None:
            raise SttmError("this timm model has no picture size of its own; make it with img_size=...")

    def check_call(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], restored: bool) -> None:
        mask = kwargs.get("attn_mask")
        super().check_call(module, args, kwargs | {"attention_mask": mask}, restored)

    def blocks(self, model: Any) -> Any:
        return self.base(model).blocks

    def config(self, model: Any) -> Any:
        tower = self.base(model)
        embed, attention = tower.patch_embed, tower.blocks[0].attn
        return SimpleNamespace(
            image_size=embed.img_size, patch_size=embed.patch_size, num_channels=embed.proj.in_channels,
            hidden_size=tower.embed_dim, num_attention_heads=attention.num_heads, head_dim=attention.head_dim,
            prefix=tower.num_prefix_tokens,
        )  # fmt: skip

    def prefix(self, config: Any) -> int:
        return int(config.prefix)

    def block_macs(self, model: Any, grid: Grid, frames: int, tokens: int) -> int:
        (count, length), attention = self.lengths(grid, frames, tokens), self.blocks(model)[0].attn
        weights = sum(map(linear_macs, attention.modules()))
        attending = length * weights + 2 * length**2 * int(attention.attn_dim)
        return count * attending + self.mlp_macs(model, grid, frames, tokens)

    def mlp_weights(self, model: Any) -> int:
        return sum(map(linear_macs, self.blocks(model)[0].mlp.modules()))

    def head_macs(self, model: Any, tokens: int) -> int:
        tower = self.base(model)
        pool, keys = tower.attn_pool, tokens + (tower.num_prefix_tokens if tower.pool_include_prefix else 0)
        total = linear_macs(tower.head)
        if pool is not None:
            once = sum(linear_macs(part) for part in pool.modules() if part is not pool.kv)
            total += once + keys * linear_macs(pool.kv) + 2 * keys * int(pool.num_heads * pool.head_dim)
        return total

    def layer(self, block: Any) -> Layer:
        return Layer(block, (Attention(block.attn, bias="attn_mask"),), keyword="attn_mask")
