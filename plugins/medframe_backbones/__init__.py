"""medframe's own backbones."""

import medframe


@medframe.hookimpl
def backbones() -> dict[str, str]:
    return {"llama": "medframe_backbones.llama:Llama"}
