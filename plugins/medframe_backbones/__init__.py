"""medframe's own backbones."""

import medframe


@medframe.hookimpl
def backbones() -> dict[str, str]:
    return {
        "auto": "medframe_backbones.auto:Auto",
        "llama": "medframe_backbones.llama:Llama",
    }
