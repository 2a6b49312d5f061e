"""What a scripted server says to the labeller's, the namer's and the embedder's requests."""

import json

from chat_server import Turn, says

from mralign_core.annotation.prompts import read_payload

SYNONYMS = {
    "i recall": ("recall fact", "retrieve fact", "recall the fact", "Recall_Fact!"),
    "wait": ("check claim", "verify claim", "check the claim", "Check claim."),
    "so": ("state answer", "give answer", "state the answer", "STATE ANSWER"),
}
"""First words of a segment → the phrases that a free labeller has for it, in turn."""
DIRECTIONS = {"fact": (1.0, 0.0, 0.1), "claim": (0.1, 1.0, 0.0), "answer": (0.0, 0.1, 1.0)}
NAMES = {
    "fact": ("fact_recall", "knowledge"),
    "claim": ("claim_check", "control"),
    "answer": ("answer_giving", "telling"),
    "something": ("something", "other"),
}


def label_all(request, number):
    """One phrase a segment, by its first word; synonyms take turns."""
    segments = read_payload(request["messages"])["segments"]
    return says(json.dumps({"segments": [_labelled(part, number) for part in segments]}))


def _labelled(part, number):
    lowered = part["text"].lower()
    phrases = next((words for start, words in SYNONYMS.items() if lowered.startswith(start)), ("do something",))
    return {"index": part["index"], "labels": [phrases[number % len(phrases)]]}


def name_all(request):
    """A name for each cluster, by the last word of its first phrase."""
    clusters = read_payload(request["messages"])["clusters"]
    return says(json.dumps({"clusters": [_named(entry) for entry in clusters]}))


def _named(entry):
    name, macro = NAMES[entry["phrases"][0]["phrase"].split()[-1]]
    return {"cluster": entry["cluster"], "name": name, "definition": f"does {name}", "macro_strategy": macro}


def embed_all(request):
    """A vector for each text, near the others with its last word, in reverse order of the texts."""
    data = []
    for index, text in enumerate(request["input"]):
        base = DIRECTIONS.get(text.split()[-1], (1.0, 1.0, 1.0))
        vector = [value + 0.001 * len(text) for value in base]
        data.append({"object": "embedding", "index": index, "embedding": vector})
    usage = {"prompt_tokens": 3 * len(data), "total_tokens": 3 * len(data)}
    return Turn({"object": "list", "model": request["model"], "data": data[::-1], "usage": usage})


def kind_of(request):
    """What a request is for: ``embed``, ``name`` or ``label``."""
    if "input" in request:
        return "embed"
    return "name" if "clusters" in read_payload(request["messages"]) else "label"


def play(server, **scripts):
    """Answer each kind of request, by default as above; a script is ``(request, number of its kind) -> Turn``."""
    answers = {"label": label_all, "name": lambda request, _: name_all(request), "embed": lambda r, _: embed_all(r)}
    answers |= scripts
    numbers = dict.fromkeys(answers, -1)

    def answer(request, _):
        kind = kind_of(request)
        numbers[kind] += 1
        return answers[kind](request, numbers[kind])

    server.script = answer


def kinds(server):
    """How many requests of each kind the server got."""
    found = [kind_of(request) for request in server.requests]
    return {kind: found.count(kind) for kind in ("label", "embed", "name")}
