"""A small, schema-valid run to report on, with every number derived from a seed."""

import numpy as np
import pandas as pd

from mralign_core.config import EstimateConfig, RewardConfig
from mralign_core.estimation.diagnostics import diagnose
from mralign_core.estimation.diagnostics.survey import survey_traces
from mralign_core.estimation.matrices import estimate_transitions
from mralign_core.estimation.traces import batch_of_traces, labelled_traces
from mralign_core.evaluation.decisions import decide, list_flips
from mralign_core.evaluation.metrics import paired_differences, summarize
from mralign_core.evaluation.token_costs import mean_tokens
from mralign_core.method.segment_weights import clip_ratios
from mralign_core.method.taxonomy import PAPER_TAXONOMY
from mralign_core.method.transitions import fit_em
from mralign_core.reporting.matrix_figures import Transitions
from mralign_core.reporting.report import ReportInputs
from mralign_core.schemas.annotations import ANNOTATIONS
from mralign_core.schemas.candidates import CANDIDATES
from mralign_core.schemas.held_out_traces import HELD_OUT_TRACES
from mralign_core.schemas.questions import QUESTIONS
from mralign_core.schemas.scores import SCORES
from mralign_core.schemas.segment_weights import SEGMENT_WEIGHTS
from mralign_core.schemas.training_metrics import TRAINING_METRICS
from tests.oracles import count_set_pairs, trace_ratios


def score(variant, question_id, em_thought, em_answer, draw=0, stratum="", **more):
    """One row of schemas.scores."""
    row = {
        "variant": variant,
        "question_id": question_id,
        "source": "s",
        "scoring": "exact_match",
        "stratum": stratum,
        "draw": draw,
        "completion": "",
        "thinking": None if em_thought is None else f"First.\n\n{'Oslo' if em_thought else 'Bergen'}?\n\nSecond.",
        "answer": "Oslo" if em_answer else "Bergen",
        "outcome": "ok",
        "em_thought": em_thought,
        "em_answer": em_answer,
        "contains_answer": em_answer,
        "num_prompt_tokens": 9,
        "num_tokens": 7,
    }
    return row | more


def as_scores(rows):
    """Rows as they come back from storage: validated, in object columns."""
    return SCORES.require(pd.DataFrame(rows).astype(object))


def random_scores(rng, variants, num_questions, num_draws=2):
    """Scores of two strata; all variants answer alike, but MR-ALIGN repairs a third of the wrong answers."""
    rows = []
    for number in range(num_questions):
        for draw in range(num_draws):
            thought, answer, repair = (bool(rng.random() < prob) for prob in (0.9, 0.6, 0.3))
            for variant in variants:
                ours = (answer or repair) if variant == "mr_align" else answer
                stratum = ("one_hop", "two_hop")[number % 2]
                named = None if variant == "off" else thought
                rows.append(score(variant, f"q{number:03d}", named, ours, draw, stratum))
    return as_scores(rows)


def candidate(trace_id, polarity, num_segments, stratum=""):
    """One row of schemas.candidates with segments "Segment 0 names Oslo." and so on."""
    completion, segments = "<think>\n", []
    for place in range(num_segments):
        start = len(completion)
        completion += f"Segment {place} names Oslo."
        span = {"start": start, "end": len(completion), "token_start": place, "token_end": place + 1}
        segments.append(span)
        completion += "\n\n"
    return {
        "trace_id": trace_id,
        "question_id": trace_id,
        "question": f"Which city does {trace_id} mean?",
        "answers": ["Oslo"],
        "stratum": stratum,
        "polarity": polarity,
        "draw": 0,
        "prompt": "",
        "completion": completion + "</think>\n<answer>Oslo</answer>",
        "prompt_ids": [1],
        "completion_ids": list(range(num_segments + 9)),
        "end_token_id": None,
        "answer": "Oslo",
        "segments": segments,
        "reasoning_tokens": num_segments,
    }


def annotation(trace_id, segment, labels):
    """One row of schemas.annotations, agreed on by both annotators, or unlabelled."""
    confidences = [8.0] * len(labels)
    sides = {f"labels_{side}": labels for side in "ab"} | {f"confidences_{side}": confidences for side in "ab"}
    rule = "agree" if labels else "unlabelled"
    own = {"labels": labels, "confidences": confidences, "rule": rule}
    return {"trace_id": trace_id, "segment": segment, "step": segment, **own, **sides}


def training_metrics(objective):
    """Six optimiser steps; SFT has neither segment_weights nor a KL baseline."""
    steps = np.arange(1, 7)
    columns = {"step": steps, "epoch": steps / 2, "loss": 1 / steps, "grad_norm": 1.0, "learning_rate": 1e-4}
    kto = {
        "implicit_reward_positive": steps / 9,
        "implicit_reward_negative": -steps / 9,
        "kl_baseline": 0.0,
        "kl_raw": -steps / 99,
    }
    missing = dict.fromkeys(kto)
    return TRAINING_METRICS.require(pd.DataFrame(columns | (missing if objective == "sft" else kto)))


def labelled_run(rng, num_traces=24):
    """Candidates, annotations, transitions and segment_weights of random label chains, by the real method."""
    taxonomy = PAPER_TAXONOMY
    candidates, annotations, chains = [], [], {}
    for number in range(num_traces):
        trace_id, polarity = f"t{number:02d}", ("positive", "negative")[number % 2]
        labels = [[str(rng.choice(taxonomy.labels[:6] if number % 2 else taxonomy.labels[4:]))] for _ in range(5)]
        labels[number % 5] = []
        candidates.append(candidate(trace_id, polarity, len(labels), ("one_hop", "two_hop")[number % 5 > 2]))
        annotations += [annotation(trace_id, place, names) for place, names in enumerate(labels)]
        chains[trace_id] = (polarity, [[taxonomy.state(name) for name in names] for names in labels])
    sides = ({"positive"}, {"negative"}, {"positive", "negative"})
    pairs = [count_set_pairs([c for side, c in chains.values() if side in kept], taxonomy.num_states) for kept in sides]
    plus, minus, both = (fit_em(pair, taxonomy.num_states) for pair in pairs)
    transitions = Transitions(plus, minus, both, taxonomy, confidence=0.95)
    segment_weights = []
    for trace_id, (polarity, chain) in chains.items():
        own = transitions.plus if polarity == "positive" else transitions.minus
        ratios = trace_ratios(chain, own.p, transitions.all.p)
        weights = clip_ratios(ratios, transitions.clip_min, transitions.clip_max)
        for place, (weight, ratio) in enumerate(zip(weights, ratios, strict=True)):
            row = {"trace_id": trace_id, "segment": place, "weight": float(weight), "ratio": float(ratio)}
            row |= {"clipped": bool(weight != ratio), "support": 1.0, "weight_low": None, "weight_high": None}
            segment_weights.append(row)
    frames = (
        CANDIDATES.require(pd.DataFrame(candidates)),
        ANNOTATIONS.require(pd.DataFrame(annotations)),
    )
    return *frames, transitions, SEGMENT_WEIGHTS.require(pd.DataFrame(segment_weights))


def held_out_run(rng, num_questions=40):
    """Held-out thinkings with labels: MR-ALIGN goes on to verify where think-on goes back; some name Oslo before."""
    habits = {"on": "backtracking", "mr_align": "self_verification"}
    traces, annotations = [], []
    for number in range(num_questions):
        for variant, habit in habits.items():
            trace_id, is_right = f"{variant}/q{number:03d}/0", bool(rng.random() < 0.5)
            labels = ["framing", "retrieval", *["evaluation", habit] * int(rng.integers(1, 3)), "synthesis"]
            last = len(labels) if is_right else int(rng.integers(1, len(labels)))
            texts = [f"Segment {place}{' names Oslo' if place < last else ''}." for place in range(len(labels))]
            ends = np.cumsum([len(text) + 2 for text in texts]).tolist()
            segments = [{"start": e - len(t) - 2, "end": e - 2} for e, t in zip(ends, texts, strict=True)]
            about = {
                "trace_id": trace_id,
                "variant": variant,
                "question_id": f"q{number:03d}",
                "stratum": "",
                "draw": 0,
            }
            asked = {"question": "Which city?", "answers": ["Oslo"], "completion": "\n\n".join(texts)}
            answer = {"answer": "Oslo" if is_right else "Bergen", "is_right": is_right, "segments": segments}
            traces.append({**about, **asked, **answer})
            annotations += [annotation(trace_id, place, [label]) for place, label in enumerate(labels)]
    return (
        HELD_OUT_TRACES.require(pd.DataFrame(traces).astype(object)),
        ANNOTATIONS.require(pd.DataFrame(annotations)),
    )


def diagnosed(candidates, annotations):
    """Matrices with bootstrap draws and their diagnostics, by the real estimate stage."""
    traces = {
        n: labelled_traces(candidates, annotations, labels_per_segment=n, taxonomy=PAPER_TAXONOMY)
        for n in ("two", "one")
    }
    surveys = {
        n: survey_traces([batch_of_traces(found)], PAPER_TAXONOMY.num_states, np.random.default_rng(0))
        for n, found in traces.items()
    }
    section = EstimateConfig(num_resamples=30)
    matrices = estimate_transitions(traces["two"], section, PAPER_TAXONOMY, rng=np.random.default_rng(0))
    found = diagnose(surveys, matrices, section, RewardConfig(), np.random.default_rng(0), taxonomy=PAPER_TAXONOMY)
    return Transitions.of(matrices, RewardConfig(), section.confidence, PAPER_TAXONOMY), found


def full_inputs():
    """Report inputs with every section filled."""
    rng = np.random.default_rng(0)
    candidates, annotations, _, segment_weights = labelled_run(rng, num_traces=48)
    transitions, diagnostics = diagnosed(candidates, annotations)
    scores = random_scores(rng, ("off", "on", "sft", "kto", "mr_align"), 40)
    questions = pd.DataFrame(
        {
            "question_id": sorted(set(scores["question_id"])),
            "question": "Which city?",
            "source": "s",
            "split": "eval",
        }
    ).assign(
        answers=lambda frame: [["Oslo"]] * len(frame),
        stratum="",
        scoring="exact_match",
        options=lambda frame: [[]] * len(frame),
        incorrect_answers=lambda frame: [[]] * len(frame),
    )
    held_out_traces, held_out_annotations = held_out_run(np.random.default_rng(1))
    differences = paired_differences(scores, num_resamples=500, confidence=0.95, rng=rng)
    funnel = [("questions", 60, 0, ""), ("selection", 24, 36, "draws disagree")]
    return ReportInputs(
        run={"run": "test", "model": "a model", "seed": "0"},
        taxonomy=PAPER_TAXONOMY,
        confidence=0.95,
        funnel=pd.DataFrame(funnel, columns=["step", "kept", "dropped", "reason"]),
        draws=pd.DataFrame([["draws", 75], ["ok", 71], ["unclosed thinking", 4]], columns=["", "think-on"]),
        draws_are_partial=True,
        candidates=candidates,
        annotations=annotations,
        transitions=transitions,
        diagnostics=diagnostics,
        segment_weights=segment_weights,
        training={name: training_metrics(name) for name in ("sft", "kto", "mr_align")},
        scores=scores,
        held_out_traces=held_out_traces,
        held_out_annotations=held_out_annotations,
        guessable=pd.DataFrame([{"question_id": scores["question_id"].iloc[0], "kind": "yes_no"}]),
        tokens=mean_tokens(scores),
        questions=QUESTIONS.require(questions),
        summary=summarize(scores),
        differences=differences,
        decisions=decide(scores, differences, margin=0.02, confidence=0.95, rng=rng),
        flips=list_flips(scores, questions),
        costs=pd.DataFrame({"role": ["annotator_a"], "requests": [24], "cost_usd": [0.0]}),
        ledger=pd.DataFrame({"run": ["pocket-1f2e"], "model": ["openai/x"], "requests": [24], "cost_usd": [1.5]}),
        judging_costs=pd.DataFrame({"judge": ["m/judge"], "requests": [7], "cost_usd": [0.25]}),
        judging_ledger=pd.DataFrame({"run": ["pocket-1f2e"], "model": ["m/judge"], "cost_usd": [0.25]}),
        quarantine=pd.DataFrame({"table": ["scores"], "reason": ["must be text"], "rows": [1]}),
        artifacts={"generations": "0" * 64},
        config={"seed": 0, "evaluate": {"num_draws": 2}},
    )
