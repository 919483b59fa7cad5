"""medframe's own data sets."""

import medframe


@medframe.hookimpl
def datasets() -> dict[str, str]:
    return {
        "alpaca": "medframe_datasets.general:Alpaca",
        "alpaca-zh": "medframe_datasets.general:AlpacaZh",
        "bentsao-knowledge": "medframe_datasets.bentsao:BenTsaoKnowledge",
        "bentsao-literature": "medframe_datasets.bentsao:BenTsaoLiterature",
        "chatmed-consult": "medframe_datasets.chatmed:ChatMedConsult",
        "cmedqa2": "medframe_datasets.questions:CMedQA2",
        "cmekg": "medframe_datasets.cmekg:CMeKG",
        "disc-med-sft": "medframe_datasets.disc:DiscMedSFT",
        "firefly": "medframe_datasets.general:Firefly",
        "huatuo-26m": "medframe_datasets.questions:Huatuo26M",
        "meddialog": "medframe_datasets.dialogues:MedDialog",
        "medmcqa": "medframe_datasets.questions:MedMCQA",
        "messages": "medframe_datasets.general:Messages",
        "moss-sft": "medframe_datasets.dialogues:MossSFT",
        "sharegpt": "medframe_datasets.general:ShareGPT",
        "shennong-tcm": "medframe_datasets.chatmed:ShenNongTCM",
    }
