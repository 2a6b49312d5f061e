"""A real HTTP server that speaks the OpenAI chat protocol, with a real model behind it."""

import itertools
import random

from chat_server import ChatServer, says, thinks
from tiny_engine import stream


class ModelServer(ChatServer):
    """Answers with what the model draws by the request's seed.

    ``shows`` is what clients get to see: ``tokens`` as vLLM with a reasoning parser does when asked for them,
    ``reasoning`` as other servers with such a parser, ``tags`` as servers without one. A server that does not heed
    seeds draws by its own.
    """

    def __init__(self, model, tokenizer, shows="tokens", *, heeds_seeds=True):
        super().__init__()
        self.model, self.tokenizer, self.shows, self.heeds_seeds = model.double(), tokenizer, shows, heeds_seeds
        self.script = self.answer

    def answer(self, request, number):
        thinking = request.get("chat_template_kwargs", {})
        prompt = self.tokenizer.apply_chat_template(
            request["messages"], tokenize=False, add_generation_prompt=True, **thinking
        )
        prompt_ids = self.tokenizer.encode(prompt, add_special_tokens=False)
        end_ids = {self.tokenizer.eos_token_id}
        tokens = stream(
            self.model,
            prompt_ids,
            temperature=request["temperature"],
            top_p=request["top_p"],
            top_k=max(0, request.get("top_k", 0)),
            seed=request["seed"] if self.heeds_seeds else random.getrandbits(31),
            end_ids=end_ids,
        )
        ids = list(itertools.islice(tokens, request["max_tokens"]))
        finish_reason = "stop" if ids[-1] in end_ids else "length"
        text = self.tokenizer.decode([token for token in ids if token not in end_ids])
        if self.shows == "tags":
            return says(text, finish_reason)
        thought, content = self._parted(text, thinking.get("enable_thinking", True))
        if self.shows == "tokens" and request.get("return_token_ids"):
            return thinks(thought, content, finish_reason, field="reasoning", prompt_ids=prompt_ids, token_ids=ids)
        return thinks(thought, content, finish_reason)

    def _parted(self, text, enable_thinking):
        """What a reasoning parser makes of a text: it strips both parts, and a cut one is all thinking."""
        if "</think>" not in text:
            return (text.removeprefix("<think>").strip(), None) if enable_thinking else (None, text)
        thought, _, content = text.partition("</think>")
        return thought.removeprefix("<think>").strip(), content.strip()
