"""A real HTTP server that speaks the OpenAI chat protocol, with a real model behind it."""

import contextlib
import itertools
import random
import threading
from pathlib import Path

from chat_server import ChatServer, Turn, fails, says, thinks
from peft import PeftModel
from tiny_engine import stream


class ModelServer(ChatServer):
    """Answers with what the model draws by the request's seed.

    ``shows`` is what clients get to see: ``tokens`` as vLLM with a reasoning parser does when asked for them,
    ``reasoning`` as other servers with such a parser, ``tags`` as servers without one. A server that does not heed
    seeds draws by its own.
    """

    def __init__(self, model, tokenizer, shows="tokens", *, heeds_seeds=True, **options):
        super().__init__(**options)
        self.model, self.tokenizer, self.shows, self.heeds_seeds = model.double(), tokenizer, shows, heeds_seeds
        self.script = self.answer

    def answer(self, request, number):
        thinking = request.get("chat_template_kwargs", {})
        prompt = self.tokenizer.apply_chat_template(
            request["messages"], tokenize=False, add_generation_prompt=True, **thinking
        )
        prompt_ids = self.tokenizer.encode(prompt, add_special_tokens=False)
        end_ids = {self.tokenizer.eos_token_id}
        logprobs: list[float] = []
        with self.model_for(request) as model:
            tokens = stream(
                model,
                prompt_ids,
                temperature=request["temperature"],
                top_p=request["top_p"],
                top_k=max(0, request.get("top_k", 0)),
                seed=request["seed"] if self.heeds_seeds else random.getrandbits(31),
                end_ids=end_ids,
                logprobs=logprobs,
            )
            ids = list(itertools.islice(tokens, request["max_tokens"]))
        finish_reason = "stop" if ids[-1] in end_ids else "length"
        turn = self._shown(request, ids, prompt_ids, finish_reason, end_ids)
        if request.get("logprobs"):
            content = [
                {"token": self.tokenizer.decode([token]), "logprob": logprob, "bytes": None, "top_logprobs": []}
                for token, logprob in zip(ids, logprobs, strict=True)
            ]
            turn.body["choices"][0]["logprobs"] = {"content": content}
        return turn

    @contextlib.contextmanager
    def model_for(self, request):
        """The model that a request names."""
        yield self.model

    def _shown(self, request, ids, prompt_ids, finish_reason, end_ids):
        text = self.tokenizer.decode([token for token in ids if token not in end_ids])
        if self.shows == "tags":
            return says(text, finish_reason)
        thinking = request.get("chat_template_kwargs", {}).get("enable_thinking", True)
        thought, content = self._parted(text, thinking)
        if self.shows == "tokens" and request.get("return_token_ids"):
            return thinks(thought, content, finish_reason, field="reasoning", prompt_ids=prompt_ids, token_ids=ids)
        return thinks(thought, content, finish_reason)

    def _parted(self, text, enable_thinking):
        """What a reasoning parser makes of a text: it strips both parts, and a cut one is all thinking."""
        if "</think>" not in text:
            return (text.removeprefix("<think>").strip(), None) if enable_thinking else (None, text)
        thought, _, content = text.partition("</think>")
        return thought.removeprefix("<think>").strip(), content.strip()


class AdapterServer(ModelServer):
    """Serves a model, and PEFT adapters that it is told of, as vLLM 0.30 does with ``--enable-lora``.

    One that ``ignores`` adapters lists them and answers with the base model. One that is not ``told`` has no such call.
    """

    def __init__(self, model, tokenizer, shows="tokens", *, base="taught", ignores=False, is_told=True, **options):
        super().__init__(model, tokenizer, shows, **options)
        self.base, self.ignores, self.adapters = base, ignores, {}
        self._peft, self._using = None, threading.RLock()
        no_such_call = Turn({"detail": "Not Found"}, 404)
        self.calls["/v1/load_lora_adapter"] = self.load if is_told else lambda _: no_such_call
        self._list()

    def load(self, request):
        """What vLLM answers; the adapter is added."""
        name, path = request["lora_name"], request["lora_path"]
        if name in self.adapters:
            return fails(400, f"The lora adapter '{name}' has already been loaded. If you want to load the adapter …")
        if not Path(path, "adapter_config.json").is_file():
            return fails(404, f"Loading lora {name} failed: No adapter found for {path}")
        with self._using:
            inner = f"adapter{len(self.adapters)}"  # PEFT takes no dots
            if self._peft is None:
                self._peft = PeftModel.from_pretrained(self.model, path, adapter_name=inner).eval()
            else:
                self._peft.load_adapter(path, adapter_name=inner)
            self._peft.double()
            self.adapters[name] = inner
            self._list()
        return Turn(f"Success: LoRA adapter '{name}' added successfully.")

    def _list(self):
        self.pages["/v1/models"] = {"object": "list", "data": [{"id": name} for name in (self.base, *self.adapters)]}

    def answer(self, request, number):
        if request["model"] not in (self.base, *self.adapters):
            return fails(404, f"The model `{request['model']}` does not exist.")
        return super().answer(request, number)

    @contextlib.contextmanager
    def model_for(self, request):
        with self._using:  # PEFT switches adapters in place
            if self._peft is None:
                yield self.model
            elif request["model"] == self.base or self.ignores:
                with self._peft.disable_adapter():
                    yield self._peft
            else:
                self._peft.set_adapter(self.adapters[request["model"]])
                yield self._peft
