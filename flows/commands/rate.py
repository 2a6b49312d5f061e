"""The command ``mralign rate``: choose what people rate, and open the page on which one of them does."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from flows.commands.options import ConfigOption, SetOption
from flows.commands.results import console
from flows.commands.view import PORT, open_workbench, read_settings

if TYPE_CHECKING:
    from mralign_core.rating.records import RatedKind

commands = typer.Typer()
Rated = StrEnum("Rated", ["labels", "verdicts"])
ChooseOption = StrEnum("ChooseOption", ["random", "disagreement", "pull"])


@commands.command()
def rate(
    rater: Annotated[str, typer.Option(help="Your name: a small letter, then a-z, 0-9 and _.")],
    config: ConfigOption = "pocket",
    of: Annotated[Rated, typer.Option(help="Labels of segments, or verdicts on answers.")] = Rated.labels,
    choose: Annotated[
        ChooseOption,
        typer.Option(
            help="Which traces: at random, where the annotators differ most, or where weights pull most on training. "
            "Answers are chosen at random only, as rates are corrected by them."
        ),
    ] = ChooseOption.random,
    traces: Annotated[
        int, typer.Option(min=1, max=2_000, help="How many traces, or questions with all variants' answers.")
    ] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Seed that chooses, breaks ties and shuffles.")] = 0,
    again: Annotated[
        bool,
        typer.Option("--again", help="Only what you have rated before, to see how alike you rate twice."),
    ] = False,
    run: Annotated[
        str, typer.Option(help="As for `mralign view`. \\[default: the last run of the config's name]")
    ] = "",
    publish: Annotated[
        bool,
        typer.Option(
            "--publish", help="Open nothing: publish what was rated, of all rounds, as annotator `human/NAME`."
        ),
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Where to listen on this machine; 0 for any.")] = PORT,
    set_: SetOption = None,
) -> None:
    """Rate labels or answers in a browser, blinded, by keyboard; who asks for the same again goes on where they were.

    Ratings are kept in the store. What you have rated is left out of new rounds. A second rater gives another --rater
    and the same choice, or opens the round's link. docs/rating.md says more.
    """
    from mralign_core.label_sets import label_set_of
    from mralign_core.rating.human_sets import publish_ratings
    from mralign_core.rating.rated_before import begin_round
    from mralign_core.rating.records import Choice, check_rater
    from mralign_core.reporting.store_addresses import rating_address
    from mralign_core.storage import ArtifactStore
    from mralign_core.workbench.database import shared_database
    from mralign_core.workbench.tables import find_run

    check_rater(rater)
    settings = read_settings(config, set_)
    store = ArtifactStore(settings.storage)
    if publish:
        made = publish_ratings(store, rater, label_set_of(settings).taxonomy)
        told = f"{made.rows:,} segments are {made.stage}/{made.key}; in a config: annotate.annotator_a: human/{rater}"
        console.print(escape(told), highlight=False, soft_wrap=True)
        return
    tables = find_run(store, run or settings.name)
    choice = Choice.model_validate({"by": str(choose), "num": traces, "seed": seed, "again": again})
    kind: RatedKind = "labels" if of is Rated.labels else "verdicts"
    begun = begin_round(shared_database(), tables, kind, choice, rater)
    name, left_out = begun.of.name, begun.num_left_out
    told = f"{tables.title}, in {store.root_uri}: round {name}, {len(begun.of.items):,} {of} to rate"
    told += f"; {left_out:,} that {rater} has rated are left out (--again rates them again)" if left_out else ""
    console.print(escape(told), highlight=False, soft_wrap=True)
    open_workbench(port, rating_address(settings.storage, run or settings.name, name, rater))
