"""medframe's own data sets."""

import medframe


@medframe.hookimpl
def datasets() -> dict[str, str]:
    return {"chatmed-consult": "medframe_datasets.chatmed:ChatMedConsult"}
