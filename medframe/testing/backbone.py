"""The contract of a backbone: a tiny model made on the spot, a sound tokenizer, isolated samples, honoured adapters."""

from __future__ import annotations

import json
import shutil
import socket
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest

from medframe.backbone import Backbone
from medframe.errors import BackboneError
from medframe.isolation import leak
from medframe.plugins import Kind
from medframe.testing.component import ComponentContract

WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pt", "*.pth")
TOLERANCE = 1e-4


class BackboneContract(ComponentContract):
    """A backbone, tried on its tiny model."""

    kind: ClassVar[Kind] = "backbone"
    packs: ClassVar[bool] = True
    """Whether the model keeps packed samples apart; False: a run pads."""

    def tiny(self, **fields: Any) -> Backbone:
        """The backbone of the tiny model, in fp32."""
        backbone = self.make(**{"weights": "tiny", "dtype": "float32", **fields})
        assert isinstance(backbone, Backbone)
        return backbone

    def test_tiny_model_is_the_same_everywhere(self, tmp_path: Path) -> None:
        import torch

        for seed, name in enumerate(("one", "two")):
            torch.manual_seed(seed)  # the files must not depend on the state of a random generator
            (tmp_path / name).mkdir()
            self.tiny().make_tiny_tokenizer(tmp_path / name)
            self.tiny().make_tiny_weights(tmp_path / name)
        one, two = (_contents(tmp_path / name) for name in ("one", "two"))
        assert one.keys() == two.keys()
        differing = [name for name in one if one[name] != two[name]]
        assert not differing, f"made twice, {', '.join(differing)} differ"
        assert "config.json" in one, "make_tiny_weights writes config.json"

    def test_uses_no_network(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        asked: list[Any] = []

        def refuse(*args: Any, **kwargs: Any) -> Any:
            asked.append(args)
            raise OSError("no network in this test")

        monkeypatch.setattr(socket.socket, "connect", refuse)
        monkeypatch.setattr(socket, "getaddrinfo", refuse)
        monkeypatch.setenv("MEDFRAME_CACHE", str(tmp_path))
        tiny = self.tiny()
        tiny.load_config()
        tiny.load_tokenizer()
        tiny.load_model()
        assert not asked, f"the network was asked for {asked[0]}"

    def test_tokenizer_pads_and_ends(self) -> None:
        tokenizer = self.tiny().load_tokenizer()
        assert tokenizer.eos_token_id is not None, "the tokenizer has no end token"
        assert tokenizer.pad_token_id is not None, "the tokenizer has no pad token"
        assert tokenizer.pad_token_id != tokenizer.eos_token_id, "padding is masked, and the end token is trained"

    def test_tokenizer_loses_no_text(self) -> None:
        tokenizer: Any = self.tiny().load_tokenizer()
        text = "胃疼3天，CT正常😀"
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids).strip() == text

    def test_config_and_tokenizer_need_no_weights(self, tmp_path: Path) -> None:
        whole = self.tiny().directory()
        shutil.copytree(whole, tmp_path / "bare", ignore=shutil.ignore_patterns(*WEIGHT_FILES))
        bare = self.tiny(weights=str(tmp_path / "bare"))
        assert bare.load_config().to_dict() == self.tiny().load_config().to_dict()
        assert bare.load_tokenizer().get_vocab() == self.tiny().load_tokenizer().get_vocab()

    def test_model_types_name_the_tiny_model(self) -> None:
        named = self.cls().model_types
        assert isinstance(named, tuple), "model_types is a tuple: ('llama',)"
        found = self.tiny().load_config().model_type
        assert not named or {found, "*"} & {*named}, f"model_types does not name the tiny model's own, {found}"

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_model_runs(self, dtype: str) -> None:
        import torch

        backbone = self.tiny(dtype=dtype)
        model = backbone.load_model().eval()
        assert {str(p.dtype) for p in model.parameters()} == {f"torch.{dtype}"}
        logits = _logits(model, torch.tensor([_ids(5, 1)]))
        assert logits.shape[:2] == (1, 5)
        assert logits.shape[2] >= len(backbone.load_tokenizer()), "the model has no logits for some tokens"
        assert torch.isfinite(logits).all()

    def test_weights_are_read(self, tmp_path: Path) -> None:
        """Loaded from a directory of any name, the model is the same; and it is not made of random numbers anew."""
        import torch

        shutil.copytree(self.tiny().directory(), tmp_path / "copy")
        ids = torch.tensor([_ids(6, 1)])
        one = _logits(self.tiny().load_model().eval(), ids)
        two = _logits(self.tiny(weights=str(tmp_path / "copy")).load_model().eval(), ids)
        assert torch.equal(one, two)

    def test_lora_targets_exist(self) -> None:
        cls = self.cls()
        assert cls.lora_targets, "lora_targets is empty: a LoRA recipe would have to name the modules"
        names = {name.rpartition(".")[2] for name, _ in self.tiny().load_model().named_modules()}
        missing = [target for target in cls.lora_targets if target not in (*names, "all-linear")]
        assert not missing, f"the model has no module {', '.join(missing)}"

    def test_packed_samples_are_isolated(self) -> None:
        reason = leak(self.tiny().load_model())
        if self.packs:
            assert reason is None, f"{reason}; if that is how the model is, declare packs = False"
            return
        assert reason is not None, "packs = False is declared, and packed samples are kept apart"
        pytest.skip(f"packs = False: {reason}")

    @pytest.mark.parametrize("side", ["right", "left"])
    def test_padding_changes_nothing(self, side: str) -> None:
        """Padded on the right, as in training, or on the left, as in generation, a sample computes as it does alone."""
        import torch

        backbone = self.tiny()
        model, pad = backbone.load_model().eval(), backbone.load_tokenizer().pad_token_id
        short, long = _ids(4, 1), _ids(9, 2)
        fill, start = [pad] * 5, 5 if side == "left" else 0
        rows = torch.tensor([fill + short if start else short + fill, long])
        mask = torch.tensor([[0] * 5 + [1] * 4 if start else [1] * 4 + [0] * 5, [1] * 9])
        # As generate() counts them; from the left, a model with learnt positions would else begin at the fifth.
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        padded = _logits(model, rows, attention_mask=mask, position_ids=positions)
        for row, ids, at in ((0, short, start), (1, long, 0)):
            alone = _logits(model, torch.tensor([ids]))[0]
            apart = float((padded[row, at : at + len(ids)] - alone).abs().max())
            assert apart < TOLERANCE, f"padded on the {side}, the logits of a sample change by {apart:.1e}"

    def test_adapters_are_honoured(self, tmp_path: Path) -> None:
        import torch
        from peft import LoraConfig, get_peft_model

        backbone, ids = self.tiny(), torch.tensor([_ids(6, 1)])
        base = backbone.load_model().eval()
        before = _logits(base, ids)
        torch.manual_seed(0)
        targets: Any = list(self.cls().lora_targets)
        if targets == ["all-linear"]:
            targets = "all-linear"  # peft's own word, as no list
        wrapped: Any = get_peft_model(base, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
        wrapped.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
        expected = _logits(wrapped.merge_and_unload().eval(), ids)
        loaded = self.tiny(adapters=[str(tmp_path / "adapter")]).load_model().eval()
        found = _logits(loaded, ids)
        assert float((expected - before).abs().max()) > 10 * TOLERANCE, "the adapter changes nothing"
        apart = float((found - expected).abs().max())
        assert apart < TOLERANCE, f"`adapters` gives other logits than peft's own merge, by {apart:.1e}"

    def test_a_broken_configuration_is_said(self, tmp_path: Path) -> None:
        shutil.copytree(self.tiny().directory(), tmp_path / "broken")
        file = tmp_path / "broken" / "config.json"
        config = json.loads(file.read_text("utf-8"))
        for broken in (json.dumps({**config, "vocab_size": "many"}), "{", "[]"):
            file.write_text(broken, "utf-8")
            with pytest.raises(BackboneError):
                self.tiny(weights=str(tmp_path / "broken")).load_config()

    @pytest.mark.parametrize("load", ["load_config", "load_tokenizer", "load_model"])
    def test_a_missing_directory_is_said(self, load: str, tmp_path: Path) -> None:
        backbone = self.tiny(weights=str(tmp_path / "missing"))
        with pytest.raises(BackboneError, match="missing"):
            getattr(backbone, load)()


@cache
def _ids(count: int, seed: int) -> list[int]:
    """Some ids of ordinary tokens: every tokenizer has 100 of them beyond its control tokens."""
    import numpy as np

    return [int(i) for i in np.random.RandomState(seed).randint(100, 200, count)]


def _logits(model: Any, ids: Any, **inputs: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(input_ids=ids, use_cache=False, **inputs).logits.float()


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
