"""The tiny LLaMA made on the spot, and what other tiny models share with it: the same bytes everywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PUNCTUATION = "，。！？、；：“”‘’（）《》〈〉【】「」『』〔〕—…·～～％℃°±×÷＋－＝／＜＞≤≥→　"
# Common in medicine, yet not among the level-one characters of GB 2312.
_MEDICAL = (
    "疸痫胱痤疱癜痣疣疖痱瘊瘙瘢痂癔痿瘀瘿瘰疬疝痨瘘癫痧疳疔胝胼胛肱肽脘脲腓腧腭腱膈膑臌骶髂髋髌髁骺颌颏颞囟龈"
    "鼾衄嗳嗝呃嘌呤嘧啶吡唑哌嗪呋喃喹啉噻酐酯苷芪芎苓茯茴荨莪菟葶蒿薏藿薷蛲螨痼痍孢羧羟睑眦眵翳聩耵聍骼跗跖踝"
    "踵痄砭锂癍皲谵忡胬溏谧厥佝偻噤瘥颔颚蹒跚绀桡腘睾缬酊荟萃枸杞蜃栀芩芷薤苁蒡蓣啰喑洟髯跛跽肓膻黏酰祛窦嵴叩橘溴萜"
    "蔻苄泮萘楂肼铵茱醌咪琥珀斛楝黛煅杷莓匮豉猝蜈蚣蚯蚓槟榄鞣膦腈朊悖袢跷瘾痠痨蹙臑羸咔噜"
)

_HIDDEN, _INTERMEDIATE, _LAYERS, _HEADS = 128, 352, 4, 4
# Standard deviations. A real base has learnt something that LoRA can lean on; this one has not, and with 0.02
# throughout it hardly learns: attention would see almost nothing.
_STD_EMBEDDING, _STD_LINEAR, _STD_HEAD = 0.1, 0.06, 0.02
_SEED = 20230418


def characters() -> list[str]:
    """The ordinary pieces: the space mark, ASCII, punctuation, GB 2312 level one, the medical supplement."""
    ascii_printable = "".join(map(chr, range(0x21, 0x7F)))
    # Level one: the rows 0xB0 to 0xD7; the last five cells of the last row are empty.
    cells = [bytes((row, cell)) for row in range(0xB0, 0xD8) for cell in range(0xA1, 0xFF)][:-5]
    level_one = b"".join(cells).decode("gb2312")
    return list(dict.fromkeys("▁" + ascii_printable + _PUNCTUATION + level_one + _MEDICAL))


def vocab_size() -> int:
    """How many pieces the tiny tokenizer has: three special ones, 256 bytes, the characters."""
    return 3 + 256 + len(characters())


def tokenizer_files(directory: Path) -> None:
    """Write a sentencepiece tokenizer, as the original LLaMA has it: `tokenizer.model` alone."""
    sentencepiece_file(directory, dummy_prefix=True)
    write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "LlamaTokenizer",
            "legacy": True,
            "add_bos_token": True,
            "add_eos_token": False,
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
        },
    )


def sentencepiece_file(directory: Path, *, dummy_prefix: bool, reserved: Mapping[int, str] | None = None) -> None:
    """Write `tokenizer.model`: the special pieces, the bytes, the characters; `reserved` control pieces at their ids.

    With a dummy prefix as LLaMA has it; without one as Baichuan, which also splits digits.
    """
    from sentencepiece import sentencepiece_model_pb2

    pb2: Any = sentencepiece_model_pb2  # generated: its messages are unknown to a type checker
    proto = pb2.ModelProto()
    kind = proto.SentencePiece
    pieces = [("<unk>", 0.0, kind.UNKNOWN), ("<s>", 0.0, kind.CONTROL), ("</s>", 0.0, kind.CONTROL)]
    pieces += [(f"<0x{byte:02X}>", 0.0, kind.BYTE) for byte in range(256)]
    for index, piece in (reserved or {}).items():
        pieces.insert(index, (piece, 0.0, kind.CONTROL))
    pieces += [(character, float(-i), kind.NORMAL) for i, character in enumerate(characters())]
    for piece, score, type_ in pieces:
        proto.pieces.add(piece=piece, score=score, type=type_)

    trainer = proto.trainer_spec
    trainer.model_type = trainer.BPE
    trainer.vocab_size = len(proto.pieces)
    trainer.byte_fallback = True
    if not dummy_prefix:
        trainer.split_digits = True
    trainer.unk_id, trainer.bos_id, trainer.eos_id, trainer.pad_id = 0, 1, 2, -1
    normalizer = proto.normalizer_spec
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = dummy_prefix
    normalizer.remove_extra_whitespaces = False
    normalizer.escape_whitespaces = True

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.model").write_bytes(proto.SerializeToString(deterministic=True))


def llama_files(directory: Path) -> None:
    """Write the configuration and random weights of a LLaMA that fits the tokenizer above."""
    from safetensors.numpy import save_file

    directory.mkdir(parents=True, exist_ok=True)
    write_json(
        directory / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": vocab_size(),
            "hidden_size": _HIDDEN,
            "intermediate_size": _INTERMEDIATE,
            "num_hidden_layers": _LAYERS,
            "num_attention_heads": _HEADS,
            "num_key_value_heads": _HEADS,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6,
            "hidden_act": "silu",
            "initializer_range": _STD_LINEAR,
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "dtype": "float32",
        },
    )
    save_file(random_tensors(_shapes()), directory / "model.safetensors", metadata={"format": "pt"})


def _shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab_size(), _HIDDEN)}
    for i in range(_LAYERS):
        layer = f"model.layers.{i}."
        shapes |= {f"{layer}self_attn.{name}_proj.weight": (_HIDDEN, _HIDDEN) for name in "qkvo"}
        shapes |= {f"{layer}mlp.{name}_proj.weight": (_INTERMEDIATE, _HIDDEN) for name in ("gate", "up")}
        shapes |= {f"{layer}mlp.down_proj.weight": (_HIDDEN, _INTERMEDIATE)}
        shapes |= {f"{layer}{name}_layernorm.weight": (_HIDDEN,) for name in ("input", "post_attention")}
    return shapes | {"model.norm.weight": (_HIDDEN,), "lm_head.weight": (vocab_size(), _HIDDEN)}


def random_tensors(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[np.float32]]:
    """A random tensor for every name, the same bytes everywhere: biases 0, norms 1, the rest by what they are for."""
    import numpy as np

    # RandomState's stream of integers is frozen for good and scaling by a power of two is exact. What remains
    # is an IEEE product by the half-width of the uniform distribution, sqrt(3) times its standard deviation.
    random = np.random.RandomState(_SEED)

    def tensor(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        if len(shape) == 1:
            return np.full(shape, 0 if name.endswith("bias") else 1, dtype=np.float32)
        std = _STD_EMBEDDING if "embed" in name else _STD_HEAD if name.startswith("lm_head") else _STD_LINEAR
        integers = random.randint(0, 2**32, size=shape, dtype=np.uint32)
        return ((integers.astype(np.float64) / 2.0**31 - 1.0) * (1.7320508075688772 * std)).astype(np.float32)

    return {name: tensor(name, shape) for name, shape in shapes.items()}


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write the value as JSON, the same bytes everywhere."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8", newline="\n")
