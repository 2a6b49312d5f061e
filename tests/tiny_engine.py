"""What stands behind the stand-ins of a vLLM engine and of a model server: a real model, decoded row by row."""

import torch

from mralign_core.generation import Decoding
from mralign_core.generation.randomness import draw_tokens


@torch.inference_mode()
def stream(model, prompt_ids, *, temperature, top_p, top_k, seed, end_ids, logprobs=None):
    """Tokens one by one, for ever or up to the end token, which is the last; the same seed gives the same tokens.

    The log-probability of each is appended to ``logprobs``, where that is a list.
    """
    decoding = Decoding(temperature, top_p, top_k, max_new_tokens=0, seed=0)
    generator = torch.Generator().manual_seed(seed)
    output = model(torch.tensor([prompt_ids]), use_cache=True)
    while True:
        uniform = torch.rand(1, generator=generator, dtype=torch.float64)
        token = draw_tokens(output.logits[:, -1], uniform, decoding).item()
        if logprobs is not None:
            logprobs.append(output.logits[0, -1].log_softmax(-1)[token].item())
        yield token
        if token in end_ids:
            return
        output = model(torch.tensor([[token]]), past_key_values=output.past_key_values, use_cache=True)
