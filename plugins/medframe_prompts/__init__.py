"""medframe's own prompt formats."""

import medframe


@medframe.hookimpl
def prompts() -> dict[str, str]:
    return {"chatmed": "medframe_prompts.chatmed:ChatMed"}
