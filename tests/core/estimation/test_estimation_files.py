"""The fast path, Parquet files to set-pair counts, gives what the plain one gives, and names the row that is wrong."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from mralign_core.errors import ArtifactError, DataError
from mralign_core.estimation.corpus import count_corpus
from mralign_core.estimation.reading import read_trace_batches
from mralign_core.estimation.traces import batch_of_traces, labelled_traces, traces_of_batch
from mralign_core.method.hidden_chain import NOT_ASKED
from mralign_core.method.taxonomy import PAPER_TAXONOMY
from tests.annotated_files import (
    annotation_row,
    candidate_row,
    random_rows,
    taxonomy_of,
    with_votes,
    write_files,
    write_unchecked,
)
from tests.oracles import count_set_pairs

STRATA = ("one-hop", "two-hop", "")


def assert_same_pairs(one, other):
    for name, value in one._asdict().items():
        np.testing.assert_array_equal(getattr(other, name), value, err_msg=name)


def plain_pairs(traces, num_states, polarity, stratum):
    wanted = [t.steps for t in traces if polarity in (None, t.polarity) and stratum in (None, t.stratum)]
    return count_set_pairs(wanted, num_states)


@pytest.fixture(scope="module", params=[5, 15, 70], ids="{} labels".format)
def annotated(request, tmp_path_factory):
    taxonomy = PAPER_TAXONOMY if request.param == 15 else taxonomy_of(request.param)
    rows = random_rows(np.random.default_rng(request.param), 120, taxonomy, STRATA)
    return taxonomy, rows, write_files(tmp_path_factory.mktemp("files"), *rows)


@pytest.mark.parametrize("labels_per_segment", ["two", "one"])
@pytest.mark.parametrize("batch_rows", [1, 2, 7, 100, 10_000])
def test_files_give_the_counts_of_the_plain_path(annotated, labels_per_segment, batch_rows):
    taxonomy, rows, files = annotated
    traces = labelled_traces(*map(pd.DataFrame, rows), labels_per_segment=labels_per_segment, taxonomy=taxonomy)
    batches = read_trace_batches(
        *files, labels_per_segment=labels_per_segment, taxonomy=taxonomy, batch_rows=batch_rows
    )
    corpus = count_corpus(batches, taxonomy.num_states)
    assert sorted(corpus.strata) == sorted(STRATA)
    for polarity in (None, "positive", "negative"):
        for stratum in (None, *STRATA):
            plain = plain_pairs(traces, taxonomy.num_states, polarity, stratum)
            assert_same_pairs(plain, corpus.pairs(polarity, stratum))
    assert corpus.totals == {
        "traces": len(traces),
        "traces without a label": sum(not any(trace.steps) for trace in traces),
        "steps without a label": sum(not step for trace in traces for step in trace.steps),
    }
    assert corpus.totals["traces without a label"] > 5 and corpus.totals["steps without a label"] > 20


@pytest.mark.parametrize("batch_rows", [1, 13, 10_000])
def test_files_give_the_same_columns_as_lists(annotated, batch_rows):
    taxonomy, rows, files = annotated
    traces = labelled_traces(*map(pd.DataFrame, rows), taxonomy=taxonomy)
    whole = batch_of_traces(traces)
    trace, step = 0, 0
    for batch in read_trace_batches(*files, taxonomy=taxonomy, batch_rows=batch_rows):
        here, steps = slice(trace, trace + len(batch.trace_ids)), slice(step, step + len(batch.labels))
        assert batch.trace_ids.equals(whole.trace_ids[here]) and batch.strata.equals(whole.strata[here])
        np.testing.assert_array_equal(batch.is_positive, whole.is_positive[here])
        np.testing.assert_array_equal(batch.trace_of_step + trace, whole.trace_of_step[steps])
        np.testing.assert_array_equal(batch.labels, whole.labels[steps])
        trace, step = here.stop, steps.stop
    assert (trace, step) == (len(traces), len(whole.labels))


@pytest.mark.parametrize("labels_per_segment", ["two", "one"])
def test_streamed_traces_are_those_of_the_tables(annotated, labels_per_segment):
    taxonomy, rows, files = annotated
    options = {"labels_per_segment": labels_per_segment, "taxonomy": taxonomy}
    streamed = [t for batch in read_trace_batches(*files, batch_rows=40, **options) for t in traces_of_batch(batch)]
    plain = labelled_traces(*map(pd.DataFrame, rows), **options)
    assert streamed == [trace._replace(steps=[tuple(sorted(step)) for step in trace.steps]) for trace in plain]


@pytest.mark.parametrize("batch_rows", [1, 13, 10_000])
@pytest.mark.parametrize("labels_per_segment", ["two", "one"])
def test_votes_are_read_step_by_step(annotated, tmp_path, batch_rows, labels_per_segment):
    taxonomy, (candidates, annotations), files = annotated
    rows = with_votes(np.random.default_rng(0), annotations, taxonomy)
    voted = write_files(tmp_path, candidates, rows)
    options = {"taxonomy": taxonomy, "labels_per_segment": labels_per_segment, "batch_rows": batch_rows}
    batches = list(read_trace_batches(*voted, with_votes=True, **options))
    assert all(batch.votes is None for batch in read_trace_batches(*files, **options))
    by_step = {(row["trace_id"], row["step"]): row for row in rows}
    expected = [
        [_states_said(row["labels_a"], taxonomy), _states_said(row["labels_b"], taxonomy), _adjudicated(row, taxonomy)]
        for row in by_step.values()
    ]
    assert np.concatenate([batch.votes for batch in batches]).tolist() == expected
    assert sum(row["rule"] == "adjudicate" for row in by_step.values()) > 20
    assert sum(row["rule"] == "unlabelled" and row["labels_b"] != [] for row in by_step.values()) > 20


def _states_said(labels, taxonomy):
    return [*sorted(taxonomy.state(label) for label in labels), 0, 0][:2]


def _adjudicated(row, taxonomy):
    was_asked = row["rule"] == "adjudicate" or (row["rule"] == "unlabelled" and row["labels_a"] != row["labels_b"])
    return _states_said(row["labels"], taxonomy) if was_asked else [NOT_ASKED, 0]


@pytest.mark.parametrize("column", ["labels_a", "labels_b"])
def test_a_vote_for_an_unknown_label_is_refused(tmp_path, column):
    rows = [annotation_row("a", 0, 0, ["framing"]) | {"labels_a": [], "labels_b": [], column: ["dreaming"]}]
    files = write_unchecked(tmp_path, [candidate_row("a")], rows)
    assert list(read_trace_batches(*files, taxonomy=PAPER_TAXONOMY))
    with pytest.raises(DataError, match=rf"row 0: {column} \['dreaming'\] are not all in the taxonomy"):
        list(read_trace_batches(*files, taxonomy=PAPER_TAXONOMY, with_votes=True))


def test_what_is_kept_of_each_trace_adds_up_to_the_counts(annotated):
    taxonomy, _, files = annotated
    corpus = count_corpus(
        read_trace_batches(*files, taxonomy=taxonomy, batch_rows=50), taxonomy.num_states, keep_traces=True
    )
    kept = corpus.by_trace
    assert kept
    np.testing.assert_array_equal(np.bincount(kept.columns), corpus.counts)
    assert len(kept.lengths) == corpus.num_traces.sum() and kept.lengths.sum() == corpus.counts.sum()
    assert kept.is_positive.sum() == corpus.num_traces[1::2].sum()
    group, code = np.divmod(corpus.columns[kept.columns], taxonomy.num_states**4)
    trace = np.repeat(np.arange(len(kept.lengths)), kept.lengths)
    np.testing.assert_array_equal(group % 2, kept.is_positive[trace])
    stops = code % taxonomy.num_states**2 == (taxonomy.num_states - 1) * taxonomy.num_states
    np.testing.assert_array_equal(np.flatnonzero(stops), np.cumsum(kept.lengths) - 1)


def test_segments_keep_their_numbers_where_a_row_is_missing(tmp_path):
    rows = [annotation_row("a", segment, segment, ["framing"]) for segment in (0, 2, 3)]
    (batch,) = read_trace_batches(*write_files(tmp_path, [candidate_row("a")], rows), taxonomy=PAPER_TAXONOMY)
    assert batch.segments.tolist() == [0, 2, 3]


def test_no_annotation_at_all_is_no_batch(tmp_path):
    assert list(read_trace_batches(*write_files(tmp_path, [candidate_row("a")], []), taxonomy=PAPER_TAXONOMY)) == []


def row(segment=0, step=None, labels=("framing",), trace_id="b", **other):
    return annotation_row(trace_id, segment, segment if step is None else step, list(labels), **other)


WRONG = {
    "unknown label": ([row(labels=["framing", "guessing"])], "row 2: labels .*guessing.* not all in the taxonomy"),
    "empty label": ([row(labels=[None])], "row 2: labels .*None.* not all in the taxonomy"),
    "three labels": ([row(labels=["framing", "retrieval", "analogy"])], "row 2: labels has more than 2 entries"),
    "label twice": ([row(labels=["framing", "framing"])], "row 2: labels holds one label twice"),
    "no labels": ([row() | {"labels": None}], "row 2: labels is empty"),
    "no trace": ([row(trace_id=None)], "row 2: trace_id is empty"),
    "segment again": ([row(1), row(1)], "row 3: segment does not rise"),
    "step back": ([row(0, 1), row(1, 0)], "row 3: step falls"),
    "step torn": ([row(0, 0), row(1, 0, ["analogy"])], "row 3: labels differ from those of the row before"),
    "foreign trace": ([row(trace_id="elsewhere")], "row 2: trace 'elsewhere' is not among the candidates"),
    "split trace": ([row(), row(1, trace_id="c"), row(2)], "row 4: trace 'b' is not among the candidates that are lef"),
    "other order": ([row(trace_id="c"), row()], "row 3: trace 'b' is not among the candidates that are left"),
}


@pytest.mark.parametrize("batch_rows", [1, 100])
@pytest.mark.parametrize(("rows", "says"), WRONG.values(), ids=WRONG)
def test_the_row_that_is_wrong_is_named(tmp_path, rows, says, batch_rows):
    candidates = [candidate_row(trace_id) for trace_id in "abc"]
    files = write_unchecked(tmp_path, candidates, [row(0, trace_id="a"), row(1, trace_id="a"), *rows])
    with pytest.raises(DataError, match=says):
        list(read_trace_batches(*files, taxonomy=PAPER_TAXONOMY, batch_rows=batch_rows))


def test_one_label_needs_a_confidence_for_each(tmp_path):
    files = write_unchecked(tmp_path, [candidate_row("b")], [row(), row(1, confidences=[])])
    with pytest.raises(DataError, match="row 1: there is not one confidence for each label"):
        list(read_trace_batches(*files, taxonomy=PAPER_TAXONOMY, labels_per_segment="one"))


@pytest.mark.parametrize("batch_rows", [1, 2, 100])
def test_the_first_segment_of_a_step_chooses_its_one_label_on_both_paths(tmp_path, batch_rows):
    pair = ["framing", "analogy"]
    rows = [row(0, 0, pair, confidences=[8.0, 6.0]), row(1, 0, pair[::-1], confidences=[9.0, 5.0])]
    rows += [row(2, 1, pair, confidences=[5.0, 6.0]), row(3, 1, pair, confidences=[7.0, 7.0])]
    candidates = [candidate_row("b")]
    one: dict[str, Any] = {"labels_per_segment": "one", "taxonomy": PAPER_TAXONOMY}
    files = write_files(tmp_path, candidates, rows)
    streamed = [t for batch in read_trace_batches(*files, batch_rows=batch_rows, **one) for t in traces_of_batch(batch)]
    assert streamed == labelled_traces(pd.DataFrame(candidates), pd.DataFrame(rows), **one)
    assert [PAPER_TAXONOMY.state(label) for label in pair] == [state for (state,) in streamed[0].steps]


def test_a_step_is_torn_by_labels_that_are_not_kept_too(tmp_path):
    rows = [row(0, 0, ["framing", "analogy"], confidences=[9.0, 1.0]), row(1, 0, ["framing"])]
    files = write_unchecked(tmp_path, [candidate_row("b")], rows)
    with pytest.raises(DataError, match="row 1: labels differ from those of the row before"):
        list(read_trace_batches(*files, taxonomy=PAPER_TAXONOMY, labels_per_segment="one"))


@pytest.mark.parametrize("odd", [None, float("nan")])
def test_a_confidence_that_is_no_number_is_named(tmp_path, odd):
    rows = [row(), row(1, labels=["framing", "analogy"], confidences=[9.0, odd])]
    files = write_unchecked(tmp_path, [candidate_row("b")], rows)
    with pytest.raises(DataError, match="row 1: a confidence is not a number"):
        list(read_trace_batches(*files, taxonomy=PAPER_TAXONOMY, labels_per_segment="one"))


@pytest.mark.parametrize(
    ("candidate", "says"),
    [
        (candidate_row("b", polarity="good"), "table 'candidates', row 1: polarity must be one of positive, negative"),
        (candidate_row("b", stratum=None), "table 'candidates', row 1: stratum is empty"),
    ],
)
def test_a_wrong_candidate_is_named(tmp_path, candidate, says):
    files = write_unchecked(tmp_path, [candidate_row("a"), candidate], [row(trace_id="a"), row()])
    with pytest.raises(DataError, match=says):
        list(read_trace_batches(*files, taxonomy=PAPER_TAXONOMY))


def test_only_the_right_table_is_streamed(tmp_path):
    files = write_files(tmp_path, [candidate_row("a")], [row(trace_id="a")])
    with pytest.raises(ArtifactError, match="holds table 'candidates', not 'annotations'"):
        list(read_trace_batches(files.candidates, files.candidates, taxonomy=PAPER_TAXONOMY))
    files.annotations.write_bytes(b"no Parquet")
    with pytest.raises(ArtifactError, match="not a readable Parquet file"):
        list(read_trace_batches(*files, taxonomy=PAPER_TAXONOMY))


def test_pairs_of_each_trace_are_those_of_the_plain_count(annotated):
    taxonomy, rows, _ = annotated
    traces = [t for t in labelled_traces(*map(pd.DataFrame, rows), taxonomy=taxonomy) if any(t.steps)]
    corpus = count_corpus([batch_of_traces(traces)], taxonomy.num_states, keep_traces=True)
    every, by_trace = corpus.pairs(), corpus.pairs_by_trace()
    assert (by_trace.sum(axis=0) == every.multiplicities).all() and len(by_trace) == len(traces)
    for counts, trace in zip(by_trace[:20], traces, strict=False):
        plain = count_set_pairs([trace.steps], taxonomy.num_states)
        np.testing.assert_array_equal(every.sources[counts > 0], plain.sources)
        np.testing.assert_array_equal(every.targets[counts > 0], plain.targets)
        np.testing.assert_array_equal(counts[counts > 0], plain.multiplicities)
