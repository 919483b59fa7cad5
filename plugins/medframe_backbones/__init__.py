"""medframe's own backbones."""

import medframe


@medframe.hookimpl
def backbones() -> dict[str, str]:
    return {
        "baichuan": "medframe_backbones.baichuan:Baichuan",
        "llama": "medframe_backbones.llama:Llama",
    }
