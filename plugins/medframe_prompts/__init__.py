"""medframe's own prompt formats."""

import medframe


@medframe.hookimpl
def prompts() -> dict[str, str]:
    return {
        "baichuan-chat": "medframe_prompts.baichuan:BaichuanChat",
        "baichuan2-chat": "medframe_prompts.baichuan:Baichuan2Chat",
        "bentsao-bloom": "medframe_prompts.bentsao:BenTsaoBloom",
        "bentsao-literature": "medframe_prompts.bentsao:BenTsaoLiterature",
        "bentsao-med": "medframe_prompts.bentsao:BenTsaoMed",
        "chat-template": "medframe_prompts.chat_template:ChatTemplate",
        "chatmed": "medframe_prompts.chatmed:ChatMed",
        "chinese-alpaca": "medframe_prompts.alpaca:ChineseAlpaca",
        "disc": "medframe_prompts.baichuan:Disc",
        "huozi-chat": "medframe_prompts.huozi:HuoziChat",
    }
