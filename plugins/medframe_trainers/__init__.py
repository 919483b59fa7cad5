"""medframe's own trainers."""

import medframe


@medframe.hookimpl
def trainers() -> dict[str, str]:
    return {"lora": "medframe_trainers.lora:Lora", "full": "medframe_trainers.full:Full"}
