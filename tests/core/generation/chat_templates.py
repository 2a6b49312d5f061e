"""Chat templates: minimal ones in our own words with the switches of the families, and the real ones of TRL."""

from importlib import resources

HEAD = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
BEGIN = "{% if add_generation_prompt %}<|im_start|>assistant\n"
EMPTY = "<think>\n\n</think>\n\n"
TURNS = "<|im_start|>user\nWho wrote Emma?<|im_end|>\n<|im_start|>assistant\n"

CHATML = HEAD + BEGIN + "{% endif %}"
"""No switch, no think tag: Nemotron 1 (by its system prompt), or a plain chat model."""
SWITCH = HEAD + BEGIN + "{% if enable_thinking is defined and not enable_thinking %}" + EMPTY + "{% endif %}{% endif %}"
"""As Qwen3."""
VARIABLE = HEAD + BEGIN + "{% if thinking is defined and thinking %}<think>{% else %}</think>{% endif %}{% endif %}"
"""As DeepSeek-V3.1."""
ALWAYS_OPEN = HEAD + BEGIN + "<think>\n{% endif %}"
"""As Qwen3-2507 (thinking) and, since 2025-02, DeepSeek-R1."""
SYSTEM_SWITCH = (
    "{% set ns = namespace(on=true) %}"
    "{% for m in messages %}{% if '/think' in m.content %}{% set ns.on = true %}"
    "{% elif '/no_think' in m.content %}{% set ns.on = false %}{% endif %}{% endfor %}"
    + HEAD
    + BEGIN
    + "{% if ns.on %}<think>\n{% else %}<think></think>{% endif %}{% endif %}"
)
"""As Nemotron Nano 2: any message switches, and "</think>" holds "/think"."""


def trl_template(name: str) -> str:
    """The template of a real model, as TRL ships it."""
    return resources.files("trl").joinpath("chat_templates", f"{name}.jinja").read_text(encoding="utf-8")
