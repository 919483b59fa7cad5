"""medframe's own backbones."""

import medframe


@medframe.hookimpl
def backbones() -> dict[str, str]:
    return {
        "auto": "medframe_backbones.auto:Auto",
        "baichuan": "medframe_backbones.baichuan:Baichuan",
        "bloom": "medframe_backbones.bloom:Bloom",
        "huozi": "medframe_backbones.bloom:Huozi",
        "llama": "medframe_backbones.llama:Llama",
    }
