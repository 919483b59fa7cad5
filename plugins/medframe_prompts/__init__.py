"""medframe's own prompt formats."""

import medframe


@medframe.hookimpl
def prompts() -> dict[str, str]:
    return {
        "chat-template": "medframe_prompts.chat_template:ChatTemplate",
        "chatmed": "medframe_prompts.chatmed:ChatMed",
        "bentsao-med": "medframe_prompts.bentsao:BenTsaoMed",
        "bentsao-bloom": "medframe_prompts.bentsao:BenTsaoBloom",
        "bentsao-literature": "medframe_prompts.bentsao:BenTsaoLiterature",
        "huozi-chat": "medframe_prompts.huozi:HuoziChat",
        "disc": "medframe_prompts.baichuan:Disc",
        "baichuan-chat": "medframe_prompts.baichuan:BaichuanChat",
        "baichuan2-chat": "medframe_prompts.baichuan:Baichuan2Chat",
        "chinese-alpaca": "medframe_prompts.alpaca:ChineseAlpaca",
    }
