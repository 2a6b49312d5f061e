"""Artifacts that are made in shards, with all their shards, in this process."""

from flows.fan_out import missing_shards
from tasks.annotate import annotate_shard, collect_annotations
from tasks.engine.session import session
from tasks.generate import collect_generations, sample_shard
from tasks.judge import collect_judgements, judge_shard


def make_in_shards(shard, joined, config, *inputs, **named):
    """What a task joins, from the shards that another task makes where they are missing."""
    with session():
        for rows in missing_shards(joined.work(config, *inputs, **named)):
            shard.run_here(config, *inputs, **named, rows=rows)
        return joined.run_here(config, *inputs, **named)


def draw(config, questions, model):
    """The draws of all training questions."""
    return make_in_shards(sample_shard, collect_generations, config, questions, model)


def label(config, candidates):
    """The labels of all candidates."""
    return make_in_shards(annotate_shard, collect_annotations, config, candidates)


def judge_all(config, questions, scores):
    """What judges say of each variant's answers."""
    return {
        variant: make_in_shards(judge_shard, collect_judgements, config, ref, questions, variant=variant)
        for variant, ref in scores.items()
    }
