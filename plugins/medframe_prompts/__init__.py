"""medframe's own prompt formats."""

import medframe


@medframe.hookimpl
def prompts() -> dict[str, str]:
    return {
        "chat-template": "medframe_prompts.chat_template:ChatTemplate",
        "chatmed": "medframe_prompts.chatmed:ChatMed",
    }
