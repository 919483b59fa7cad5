"""What is quick is right: losses without logits, attention by sample, and the way that matrices are multiplied."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy, linear
from transformers import BloomConfig, Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config
from transformers.models.qwen2 import Qwen2ForCausalLM

from medframe import by_sample, sample_lengths
from medframe.attention import NAME, quicken
from medframe_backbones.baichuan.config import BaichuanConfig
from medframe_backbones.baichuan.model import BaichuanForCausalLM
from medframe_backbones.bloom_attention import BloomForCausalLM
from medframe_trainers.head import Head, LinearCrossEntropy, head, is_right
from medframe_trainers.loss import token_loss
from medframe_trainers.precision import quickest

SHAPE = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**SHAPE, "intermediate_size": 48}


def model(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**LLAMA, num_key_value_heads=2))  # type: ignore[arg-type]
    if kind == "tied":
        return LlamaForCausalLM(LlamaConfig(**LLAMA, tie_word_embeddings=True))  # type: ignore[arg-type]
    if kind == "bloom":
        return BloomForCausalLM(BloomConfig(**SHAPE))
    if kind == "softcap":
        return Gemma2ForCausalLM(Gemma2Config(**LLAMA, head_dim=8, final_logit_softcapping=3.0, sliding_window=4))  # type: ignore[arg-type]
    if kind == "window":
        window = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1, "num_key_value_heads": 4}
        return Qwen2ForCausalLM(Qwen2Config(**LLAMA, **window))  # type: ignore[arg-type]
    return BaichuanForCausalLM(
        BaichuanConfig(
            **LLAMA,  # type: ignore[arg-type]
            positions="rope" if kind == "baichuan-rope" else "alibi",
            head="norm" if kind == "baichuan-norm" else "linear",
        )
    )


LENGTHS = (5, 1, 9, 3)


def row() -> dict[str, torch.Tensor]:
    """A packed row of four samples, half of whose tokens are supervised."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 300, (1, sum(LENGTHS)), generator=generator)
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    labels = ids.masked_fill(torch.rand(ids.shape, generator=generator) < 0.5, -100).masked_fill(positions == 0, -100)
    return {"input_ids": ids, "labels": labels, "position_ids": positions}


def gradients(model: Any, batch: dict[str, torch.Tensor], by: Head | None) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss, tokens = token_loss(model, batch, by)
    (loss / tokens).backward()
    return {"loss": loss.detach()} | {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_near(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], within: float = 1e-5) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert float((tensor - other[name]).abs().max()) <= within * max(1e-2, float(tensor.abs().max())), name


KINDS = ["llama", "tied", "bloom", "baichuan-alibi", "baichuan-rope", "baichuan-norm"]


@pytest.mark.parametrize("train", ["full", "lora", "lora and head"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_by_sample_and_without_logits_has_the_gradients_of_the_library(kind: str, train: str) -> None:
    plain, quick = model(kind), model(kind)
    quicken(quick)
    assert (quick.config._attn_implementation == NAME) == (kind not in ("bloom", "baichuan-alibi", "baichuan-norm"))
    if train != "full":
        whole = ["lm_head"] if train == "lora and head" else None
        layers = ["q_proj", "v_proj", "W_pack", "query_key_value"]
        config = LoraConfig(r=4, target_modules=layers, modules_to_save=whole, init_lora_weights=False)
        torch.manual_seed(2)
        plain = get_peft_model(plain, config)
        torch.manual_seed(2)
        quick = get_peft_model(quick, config)
    # As the library computes it: each sample by itself, logits at every place.
    batch = row()
    total = int((batch["labels"][:, 1:] != -100).sum())
    loss = 0.0
    for ids, labels in zip(batch["input_ids"].split(LENGTHS, 1), batch["labels"].split(LENGTHS, 1), strict=True):
        logits = plain(input_ids=ids, use_cache=False).logits[0, :-1]
        loss = loss + cross_entropy(logits, labels[0, 1:], reduction="sum")
    assert isinstance(loss, torch.Tensor)
    (loss / total).backward()
    expected = {"loss": loss.detach()} | {n: p.grad for n, p in plain.named_parameters() if p.grad is not None}
    own = head(quick)
    assert own is not None
    assert is_right(quick, own)
    assert_near(expected, gradients(quick, batch, own))
    own.release()
    assert_near(expected, gradients(quick, batch, None))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_low_precision_gradients_are_near(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(300, 16), torch.randn(2000, 16) / 4
    targets = torch.randint(0, 2000, (300,))
    exact = [tensor.clone().requires_grad_() for tensor in (hidden, weight)]
    cross_entropy(linear(exact[0], exact[1]), targets, reduction="sum").backward()
    low, whole = hidden.to(dtype).requires_grad_(), weight.clone().requires_grad_()
    loss: Any = LinearCrossEntropy.apply(low, whole, None, targets, whole.detach().to(dtype))  # type: ignore[no-untyped-call]
    loss.backward()
    for mine, right in ((low, exact[0]), (whole, exact[1])):
        assert mine.grad is not None
        assert right.grad is not None
        assert float((mine.grad.float() - right.grad).norm() / right.grad.norm()) < 1e-2


def test_rows_beyond_one_part_and_a_bias_are_counted() -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(700, 8), torch.randn(50, 8), torch.randn(50)]
    targets = torch.randint(0, 50, (700,))
    mine, right = ([tensor.clone().requires_grad_() for tensor in tensors] for _ in range(2))
    loss: Any = LinearCrossEntropy.apply(*mine, targets, mine[1].detach())  # type: ignore[no-untyped-call]
    expected = cross_entropy(linear(*right), targets, reduction="sum")
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    (loss * 0.5).backward()
    (expected * 0.5).backward()
    for one, other in zip(mine, right, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.allclose(one.grad, other.grad, atol=1e-4)


def test_a_share_too_small_for_fp32_still_has_its_loss() -> None:
    hidden, weight = torch.tensor([[200.0]]), torch.tensor([[1.0], [-1.0]])
    loss: Any = LinearCrossEntropy.apply(hidden, weight, None, torch.tensor([1]), weight)  # type: ignore[no-untyped-call]
    assert float(loss) == 400.0


def test_a_model_that_changes_its_logits_keeps_them() -> None:
    made = model("softcap")
    own = head(made)
    assert own is not None
    assert not is_right(made, own)


def test_a_head_with_an_adapter_of_its_own_keeps_its_logits() -> None:
    config = LoraConfig(r=4, target_modules=["lm_head"])
    assert head(get_peft_model(model("llama"), config)) is None


@pytest.mark.parametrize("kind", ["window", "softcap"])
def test_layers_that_see_a_window_see_it_by_sample_too(kind: str) -> None:
    plain, quick = model(kind).eval(), model(kind).eval()
    quicken(quick)
    batch = {name: tensor for name, tensor in row().items() if name != "labels"}
    with torch.no_grad():
        one, other = (each(**batch, use_cache=False).logits for each in (plain, quick))
    assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "baichuan-rope"])
def test_what_is_not_packed_is_attended_as_ever(kind: str) -> None:
    plain, quick = model(kind).eval(), model(kind).eval()
    quicken(quick)
    assert quick.config._attn_implementation == NAME
    ids = torch.randint(5, 300, (2, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    with torch.no_grad():
        one, other = (each(input_ids=ids, attention_mask=mask).logits[mask.bool()] for each in (plain, quick))
        assert torch.allclose(one, other, atol=1e-5)
        said = [
            each.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False, pad_token_id=0)
            for each in (plain, quick)
        ]
    assert said[0].equal(said[1])


def test_samples_are_found_by_their_positions() -> None:
    assert sample_lengths(torch.tensor([[0, 1, 2, 0, 1, 0]])) == [3, 2, 1]
    assert sample_lengths(torch.tensor([[4, 5, 6, 4, 5]])) == [3, 2]
    for one in (None, torch.arange(5)[None], torch.zeros(2, 5), torch.arange(5)):
        assert sample_lengths(one) == []


def test_attention_by_sample_is_causal_attention_of_each() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, 6, 8) for heads in (4, 2, 2))
    found = by_sample(query, key, value, [2, 4], grouped=True)
    for start, end in ((0, 2), (2, 6)):
        part = (each[:, :, start:end] for each in (query, key, value))
        alone = torch.nn.functional.scaled_dot_product_attention(*part, is_causal=True, enable_gqa=True)
        assert torch.allclose(found[:, :, start:end], alone, atol=1e-6)


def test_the_way_that_matrices_are_multiplied_is_as_it_was_afterwards() -> None:
    before = torch.get_float32_matmul_precision()
    left, right = torch.randn(64, 512), torch.randn(64, 512)
    with quickest(1):
        product = linear(left, right)
    assert torch.get_float32_matmul_precision() == before
    exact = left.double() @ right.double().T
    assert float((product - exact).abs().max() / exact.abs().max()) < 2e-6
