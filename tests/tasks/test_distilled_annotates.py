"""A run whose annotator A is a distilled one: found by name, in the key and the lineage, kept, refused with reason."""

import numpy as np
import pytest
from pydantic import ValidationError

from flows.pipeline import pipeline
from mralign_core.config import RetentionConfig, RunConfig, StorageConfig
from mralign_core.distillation.annotator import AboutAnnotator, DistilledAnnotator
from mralign_core.distillation.fitting import distil
from mralign_core.distillation.published import find_annotator, publish_annotator
from mralign_core.distillation.teaching import traces_of_annotations, traces_of_file
from mralign_core.errors import ConfigError, DataError
from mralign_core.evaluation.held_out_traces import variants_to_label
from mralign_core.method.taxonomy import PAPER_TAXONOMY
from mralign_core.retention.collect import Collector
from mralign_core.retention.verify import verify_store
from mralign_core.storage import ArtifactStore, render_lineage
from tasks.annotate import check_labellers, collect_annotations, quote_annotations
from tests.core.distillation.made_up_traces import made_up
from tests.published_candidates import candidate_row, publish_candidates
from tests.stages import label

LABELS = {"alpha": "retrieval", "beta": "backtracking", "gamma": "synthesis"}


@pytest.fixture
def storage(tmp_path):
    return StorageConfig(root=str(tmp_path / "store"))


def rows_of(traces):
    return [candidate_row(f"t{number}", texts) for number, texts in enumerate(traces.texts)]


@pytest.fixture
def candidates(storage, tmp_path):
    return publish_candidates(storage, rows_of(made_up(12, per_question=1, length=5)), tmp_path / "candidates")


@pytest.fixture(scope="module")
def annotators():
    """Two annotators with the paper's labels: one that learned little, and one that learned more."""
    made = []
    for num_questions in (12, 24):
        traces = made_up(num_questions, per_question=1, length=5)
        named = [[[LABELS[label] for label in segment] for segment in trace] for trace in traces.labels]
        made.append(distil(traces._replace(labels=named), PAPER_TAXONOMY.labels).annotator)
    return made


def publish(storage, annotator, name="paid"):
    return publish_annotator(ArtifactStore(storage), name, annotator, parents=[], about={})


def config_of(storage, annotator_a="local/paid", **annotate):
    offline = {"annotator_b": "cue/b", "adjudicator": "cue/adjudicator"}
    section = {**offline, "annotator_a": annotator_a, "escalate_below": 0, **annotate}
    return RunConfig(name="made", storage=storage, questions={"train": "nq_open"}, annotate=section)


def test_its_labels_are_the_runs_and_it_stands_in_their_lineage(storage, candidates, annotators):
    published = publish(storage, annotators[1])
    made = label(config_of(storage), candidates)
    store = ArtifactStore(storage)
    rows = store.read_table(made, "annotations.parquet")
    word = {"recall": "retrieval", "wait": "backtracking", "therefore": "synthesis"}
    texts = [text for trace in made_up(12, per_question=1, length=5).texts for text in trace]
    assert np.mean([word[text.split()[0]] in given for text, given in zip(texts, rows["labels"], strict=True)]) > 0.95
    manifest = store.manifest(made)
    assert published in manifest.parents and manifest.fingerprint["distilled"] == published.sha256
    assert f"distilled-annotator/{published.key[:12]}" in render_lineage(store.lineage(made))
    assert set(store.read_table(made, "raw_annotations.parquet")["model"]) == {"local/paid"}
    assert manifest.cost_usd == 0 and not quote_annotations(config_of(storage), candidates)[0][0].most_cost_usd


def test_a_name_is_what_was_published_last_and_a_digest_pins_it(storage, candidates, annotators):
    store = ArtifactStore(storage)

    def key(model="local/paid", **annotate):
        return collect_annotations.work(config_of(storage, model, **annotate), candidates).key

    first = publish(storage, annotators[0])
    before = key()
    second = publish(storage, annotators[1])
    assert key() != before and key(f"local/{first.key}") != key(f"local/{second.key}")
    assert publish(storage, annotators[0]) == first and key() == before, "published again, it is the newest again"
    assert find_annotator(store, "local/paid", "here") == first
    gc = Collector(store, RetentionConfig(runs=0, days=0, grace_hours=0), {})
    gc.carry_out(gc.plan())
    assert store.find(second.stage, second.key) and not verify_store(store).damaged
    assert len({key(), key(escalate_below=5), key(escalate_below=5, escalate="traces")}) == 3
    publish(storage, annotators[1], name="other")
    assert find_annotator(store, "local/paid", "here") == first


def test_what_is_not_there_or_learned_other_labels_is_refused(storage, candidates, annotators):
    with pytest.raises(ConfigError, match=r"no distilled annotator local/paid .*mralign distil-annotator --name paid"):
        label(config_of(storage), candidates)
    with pytest.raises(ConfigError, match="no distilled annotator local/paid"):  # before questions are even read
        pipeline.fn(config_of(storage))
    about = annotators[0].about
    fewer = AboutAnnotator(labels=about.labels[1:], calibration=about.calibration)
    chain = annotators[0].chain
    publish(storage, DistilledAnnotator(fewer, chain._replace(emission=chain.emission[:, 1:])), name="fewer")
    with pytest.raises(ConfigError, match=r"learned other labels \(framing\); use the one that it learned"):
        label(config_of(storage, "local/fewer"), candidates)


def test_held_out_thinking_is_labelled_where_that_is_free(storage):
    def labelled(**annotate):
        config = config_of(storage, **annotate)
        evaluated = config.questions.model_copy(update={"eval": ["nq_open"]})
        return variants_to_label(config.model_copy(update={"questions": evaluated}))

    assert labelled() == labelled(escalate_below=8) == ("on", "mr_align")
    assert labelled(escalate_below=8, annotator_b="openai/gpt-4o") == ()
    assert labelled(annotator_b="openai/gpt-4o") == ("on", "mr_align"), "nobody else is asked"


def test_it_never_learns_from_itself(storage, tmp_path, annotators):
    publish(storage, annotators[1])
    hard = made_up(12, per_question=1, length=5, garbled=0.5)
    candidates = publish_candidates(storage, rows_of(hard), tmp_path / "hard")
    store = ArtifactStore(storage)
    config = config_of(storage, escalate_below=9, cue_drop_prob=0, cue_flip_prob=0)
    annotations = label(config, candidates)
    rows = store.read_table(annotations, "annotations.parquet")
    alone = rows["rule"] == "distilled"
    assert alone.any() and not alone.all()
    traces = traces_of_annotations(rows, store.read_table(candidates, "candidates.parquet"))
    learned = [segment for trace in traces.labels for segment in trace]
    assert [segment is None for segment in learned] == alone.tolist()
    assert [segment for segment in learned if segment is not None] == [list(each) for each in rows[~alone]["labels"]]


def test_labels_that_come_with_traces_need_no_annotator(storage, tmp_path):
    where = {"source": "traces", "traces_path": str(tmp_path)}

    def of(**evaluate):
        section = {"annotator_a": "local/nobody", "annotator_b": "cue/b", "adjudicator": "cue/adjudicator"}
        return RunConfig(
            name="made",
            storage=storage,
            generate=where,
            questions={"train": "nq_open", "eval": "sciq"},
            annotate={**section, "source": "traces"},
            evaluate=evaluate,
        )

    check_labellers(of(label_thinking="none"))
    with pytest.raises(ConfigError, match="no distilled annotator local/nobody"):
        check_labellers(of(label_thinking="all"))


def test_a_digest_of_several_is_refused(storage, annotators):
    store, keys = ArtifactStore(storage), []
    for annotator in annotators:
        keys.append(publish(storage, annotator).key)
    for key in keys:
        assert find_annotator(store, f"local/{key}", "here").key == key
    begin = {digest[:1] for digest in (key.partition("-")[2] for key in keys)}
    for digest in "0123456789abcdef":
        fitting = [key for key in keys if key.partition("-")[2].startswith(digest)]
        if digest not in begin:
            with pytest.raises(ConfigError, match="no distilled annotator"):
                find_annotator(store, f"local/paid-{digest}", "here")
        elif len(fitting) == 2:
            with pytest.raises(ConfigError, match="give more of the digest"):
                find_annotator(store, f"local/paid-{digest}", "here")
        else:
            assert find_annotator(store, f"local/paid-{digest}", "here").key == fitting[0]


def test_labels_of_another_set_teach_nothing(annotators):
    traces = made_up(12)
    with pytest.raises(DataError, match="label 'alpha', which is not in the label set"):
        distil(traces, PAPER_TAXONOMY.labels)


def test_it_judges_nothing(storage):
    with pytest.raises(
        ValidationError, match=r"local/paid is a distilled annotator, which can be annotate.annotator_a"
    ):
        RunConfig(
            storage=storage, questions={"train": "nq_open", "eval": "nq_open"}, judge={"endpoints": ["local/paid"]}
        )


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", r"line 2 is no JSON"),
        ("[]", r'line 2 has no list "segments"'),
        ('{"segments": [{"label": "retrieval"}]}', r'line 2, segment 0 has no "text"'),
        ('{"segments": [{"text": "a", "label": "shout"}]}', r"line 2, segment 0 has label 'shout', which is not in"),
        ('{"segments": [{"text": "a", "labels": "abc"}]}', r"label 'abc'"),
        ('{"segments": [{"text": "a", "labels": ["a", "b", "c"]}]}', r"give a list of at most 2"),
    ],
)
def test_a_line_that_is_no_labelled_trace_is_named(tmp_path, line, says):
    file = tmp_path / "theirs.jsonl"
    file.write_text('{"segments": [{"text": "a", "label": "retrieval"}, {"text": " "}]}\n' + line, encoding="utf-8")
    with pytest.raises(DataError, match=says):
        traces_of_file(file, PAPER_TAXONOMY)
