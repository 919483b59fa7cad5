"""What the exported chat templates share: texts and control tokens in Jinja, and turns refused in the format's words.

Every piece eats the white space around it (`{%- -%}`), so that a template is its pieces, one a line. Transformers
parses what a template gives for control tokens. One typed in a message stays text with `apply_chat_template(...,
sanitize_control_tokens=True)`, from transformers 5.23; in medframe it always does.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from medframe import PromptError
from medframe_prompts.turns import ONE_ROUND, ROUNDS, SYSTEM_AND_ROUNDS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def quoted(text: str) -> str:
    """The text as a Jinja string."""
    # Jinja reads the escapes of JSON. What is not ASCII stays as it is: it does not read surrogate pairs.
    return json.dumps(text, ensure_ascii=False)


def control(token: str | int, tokenizer: PreTrainedTokenizerBase) -> str:
    """A Control's token as a Jinja string, empty for "bos" where the tokenizer adds none.

    PromptError when the tokenizer reads the token's name as text: then no template can lay it out.
    """
    if token == "bos" and list(tokenizer("a")["input_ids"][:1]) != [tokenizer.bos_token_id]:
        return quoted("")
    if isinstance(token, int):
        name = str(tokenizer.convert_ids_to_tokens(token))
    else:
        name = str({"bos": tokenizer.bos_token, "eos": tokenizer.eos_token}.get(token, token))
    ids = tokenizer(name, add_special_tokens=False)["input_ids"]
    if tokenizer.convert_ids_to_tokens(ids) != [name]:
        raise PromptError(f"no template can lay out control token {token!r}: this tokenizer reads {name!r} as text")
    return quoted(name)


def emit(*parts: str) -> str:
    """A line that prints these Jinja expressions one after the other."""
    return f"{{{{- {' ~ '.join(parts)} -}}}}"


def one_round() -> str:
    """Refuses what `turns.check_one_round` refuses."""
    return lines(
        _texts(),
        '{%- if messages | map(attribute="role") | list not in [["user"], ["user", "assistant"]] -%}',
        _refuse(ONE_ROUND),
        "{%- endif -%}",
    )


def rounds(*, system: bool = False) -> str:
    """Refuses what `turns.check_rounds` refuses."""
    refuse = _refuse(SYSTEM_AND_ROUNDS if system else ROUNDS)
    return lines(
        _texts(),
        "{%- set rounds = messages -%}",
        '{%- if messages[0]["role"] == "system" -%}{%- set rounds = messages[1:] -%}{%- endif -%}' if system else "",
        "{%- if not rounds -%}",
        refuse,
        "{%- endif -%}",
        "{%- for turn in rounds -%}",
        '{%- if turn["role"] != ["user", "assistant"][loop.index0 % 2] -%}',
        refuse,
        "{%- endif -%}",
        "{%- endfor -%}",
    )


def lines(*pieces: str) -> str:
    """The pieces of a template, one a line."""
    return "\n".join(piece for piece in pieces if piece)


def _refuse(wanted: str) -> str:
    roles = 'messages | map(attribute="role") | join(", ")'
    return f"{{{{- raise_exception({quoted(f'{wanted}, not ')} ~ {roles}) -}}}}"


def _texts() -> str:
    return lines(
        '{%- for message in messages if message["content"] is not string -%}',
        '{{- raise_exception("the content of a message must be text") -}}',
        "{%- endfor -%}",
    )
