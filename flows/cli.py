"""The command `seqloom`: its arguments, what it prints, and its exit status.

0 done, 1 failed, 2 wrong usage or input, 130 or 143 ended by SIGINT or SIGTERM; of training the weights are saved then.
Libraries that are slow to import are imported by the commands that need them.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.config import Profile, Recipe, load_profile, load_recipe, load_table, schema, table_overrides
from flows.process import Interrupted, ProcessFailed, interrupted_by_sigterm
from nmt.training.stopping import Stopped
from pipelines.errors import InputError

if TYPE_CHECKING:
    from flows.stages import PlannedStage
    from flows.summary import Rows, Translation
    from nmt.config import PricesConfig
    from pipelines.stage import StageRun

P = ParamSpec("P")

PRINTED_TRANSLATIONS = 5
PIPED_WIDTH = 160  # of what is printed where there is no terminal
PREFECT_START_S = 120

# What libraries say at INFO and WARNING about themselves is not about the run.
QUIET_LOGGERS = {
    "apache_beam": logging.ERROR,
    "distributed": logging.ERROR,
    "ray": logging.ERROR,
    "ray.data": logging.ERROR,
    "matplotlib": logging.WARNING,
}
OWN_LOGGERS = ("flows", "nmt", "pipelines")

app = typer.Typer(
    name="seqloom",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="""
From raw parallel text to a scored, published translation model, in one command.

A **recipe** (YAML) says what: languages, corpora, cleaning, tokeniser, model, training, search, evaluation. A
**profile** says where: Beam runner, Ray, workers, GPUs; none changes a byte of the data, and training only by rounding.
Each stage writes a folder under the workdir that is named by all that decides its content: what is unchanged is never
done twice, and a run that was killed continues at the next call.

**Examples**

- what would run, and why: `seqloom plan demo-en-de --define DATA=corpus`
- everything, up to report.html: `seqloom run demo-en-de --define DATA=corpus`
- another value of any key: `seqloom run my.yaml --set train.max_epochs=3`
- what the thresholds do, in seconds: `seqloom preview my.yaml --set clean.rules.language=0.5`
- what models there are, and how large: `seqloom architectures my.yaml`
- the best of many trainings: `seqloom tune my.yaml`, with a table `tune` in the recipe
- why a row is gone: `seqloom explain my.yaml --row captions:1024`
- with the published model: `seqloom translate runs/my/model in.txt out.txt`
- how likely it finds a translation: `seqloom score runs/my/model in.txt its-translation.txt`

**Exit status**: 0 done, 1 failed, 2 wrong usage or input, 130 or 143 ended by Ctrl-C or SIGTERM.
""",
)

WHOLE, PARTS, MODELS, HELP = "The whole", "Parts of it", "Models", "Looking things up"

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe's path, or the name of one that comes with Seqloom.")
]
Workdir = Annotated[Path, typer.Option(help="Where everything that is made goes.", file_okay=False)]
ProfileOption = Annotated[
    str | None, typer.Option("--profile", metavar="NAME|FILE", help="Where it runs. Default: this machine.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Another value of a key; can be repeated.")
]
Define = Annotated[
    list[str] | None, typer.Option("--define", metavar="NAME=VALUE", help="What ${NAME} stands for; can be repeated.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")]
AsJson = Annotated[bool, typer.Option("--json", help="Standard output is one JSON object: paths and figures.")]
FromEarlier = Annotated[
    bool,
    typer.Option("--continue-from-earlier", help="Leave out checkpoints that cannot be read, for one before them."),
]
NoRay = Annotated[bool, typer.Option("--no-ray", help="Work in this one process, without Ray.")]


def main() -> None:
    """Run the command with the process's arguments; the entry point of the script `seqloom`."""
    app()


def command(panel: str, name: str | None = None) -> Callable[[Callable[P, dict[str, Any]]], Callable[P, None]]:
    """Return a decorator that makes a function a command: its result is the JSON object, its errors the exit status."""

    def decorate(body: Callable[P, dict[str, Any]]) -> Callable[P, None]:
        @functools.wraps(body)
        def run(*args: P.args, **kwargs: P.kwargs) -> None:
            as_json = bool(kwargs.get("as_json"))
            # With --json all that is not the object goes to standard error, whoever prints it.
            to_stderr = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
            try:
                with to_stderr:
                    result = body(*args, **kwargs)
            except InputError as error:
                described = {"what": error.what, "where": error.where, "remedy": error.remedy}
                # A flow that supervises this process says it itself.
                message = None if kwargs.get("supervised") else str(error)
                _end(message, 2, {"error": described} if as_json else None)
            except ProcessFailed as error:
                _end(str(error), 1, {"error": str(error)} if as_json else None)
            except Stopped as stopped:
                _end(str(stopped), stopped.status, {"error": str(stopped)} if as_json else None)
            except KeyboardInterrupt as interrupt:
                number = signal.SIGTERM if isinstance(interrupt, Interrupted) else signal.SIGINT
                said = {"error": "interrupted"} if as_json else None
                _end("interrupted; the same command continues", 128 + number, said)
            if as_json:
                print(json.dumps(result, ensure_ascii=False))

        app.command(name, rich_help_panel=panel)(run)
        return run

    return decorate


@command(WHOLE)
def run(
    recipe: RecipeArgument,
    workdir: Workdir = Path("runs"),
    profile: ProfileOption = None,
    overrides: Overrides = None,
    define: Define = None,
    continue_from_earlier: FromEarlier = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> dict[str, Any]:
    """Run a recipe: prepare, train, translate the test sets, evaluate, publish through the gate, report.

    The flow `build` runs in this process, with a Prefect server of its own (or the one of PREFECT_API_URL), and each
    stage in a process of its own. What is done and unchanged is reused; what was killed continues.

    Under `WORKDIR/NAME/`, NAME being the recipe's, you find report.html, scores.json, model/, manifest.json, and links
    to the stages' folders.
    """
    loaded, where = _load(recipe, profile, overrides, define)
    _log_to_terminal(quiet)
    from flows.stages import plan as plan_stages

    _print_plan(plan_stages(loaded, where, workdir), quiet)
    _prepare_prefect(workdir)
    from flows.build import build
    from flows.run_folder import RunFolder

    # Prefect sets up logging at import; on the terminal stand our lines, Prefect's are in its own log of the run.
    _log_to_terminal(quiet)
    logging.getLogger("prefect").propagate = False
    path = str(Path(recipe).resolve()) if Path(recipe).is_file() else recipe
    definitions = _definitions(define)
    # As with Ctrl-C the stage's processes and Prefect's server end before this one.
    with interrupted_by_sigterm():
        result: dict[str, Any] = build(path, definitions, overrides or [], profile, str(workdir), continue_from_earlier)
    _print_result(RunFolder.of(workdir, loaded).stage_runs(), result, where.prices)
    return result


@command(WHOLE)
def plan(
    recipe: RecipeArgument,
    workdir: Workdir = Path("runs"),
    profile: ProfileOption = None,
    overrides: Overrides = None,
    define: Define = None,
    as_json: AsJson = False,
) -> dict[str, Any]:
    """Say what would run, what is reused, and why. Nothing runs and nothing is written.

    A stage that would run is compared with this recipe's last one, or else with the newest of that stage in the
    workdir: the keys of the config that differ, or the inputs.
    """
    loaded, where = _load(recipe, profile, overrides, define)
    _log_to_terminal(quiet=True)
    from flows.stages import plan as plan_stages

    stages = plan_stages(loaded, where, workdir)
    _print_plan(stages, quiet=False)
    described = [
        {"stage": stage.name, "runs": stage.runs, "reason": stage.reason, "folder": _text(stage.folder)}
        for stage in stages
    ]
    return {"recipe": loaded.name, "stages": described}


@command(WHOLE)
def tune(
    recipe: RecipeArgument,
    workdir: Workdir = Path("runs"),
    profile: ProfileOption = None,
    overrides: Overrides = None,
    define: Define = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> dict[str, Any]:
    """Search hyperparameters: train at points of the recipe's `tune.space`, and write the best one as a recipe.

    Trials that fall behind are stopped early. Each trial is trained in one process, `tune.concurrent_trials` at once;
    what was killed continues at the next call. With `tune.folds` a trial's score is the mean of a cross-validation.

    Under `WORKDIR/NAME/tune/` you find tune.html, best.yaml and trials.jsonl.
    """
    loaded, where = _load(recipe, profile, overrides, define, with_model=False)
    _log_to_terminal(quiet)
    from flows.tune_cli import tune_and_print

    with interrupted_by_sigterm():
        return tune_and_print(loaded, where, workdir, profile, _console())


@command(PARTS)
def prepare(
    recipe: RecipeArgument,
    workdir: Workdir = Path("runs"),
    profile: ProfileOption = None,
    overrides: Overrides = None,
    define: Define = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> dict[str, Any]:
    """Run the stages up to encode in this process: score, clean, fit the tokeniser, encode."""
    runs = _run_up_to("encode", recipe, workdir, profile, overrides, define, quiet=quiet)
    from flows.summary import waterfall

    _print_table("Waterfall", waterfall(runs["clean"]))
    return _described_runs(runs)


@command(PARTS)
def train(
    recipe: RecipeArgument,
    workdir: Workdir = Path("runs"),
    profile: ProfileOption = None,
    overrides: Overrides = None,
    define: Define = None,
    no_ray: NoRay = False,
    continue_from_earlier: FromEarlier = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Find out what training will need, in two updates. Nothing is left behind."),
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> dict[str, Any]:
    """Train the model, in this process or under Ray; prepare first where that has not been done.

    With the same number of workers the weights are the same with and without Ray, bit for bit on CPU.

    With --dry-run two updates and a validation on a part of dev are done with all that the profile names, in a
    temporary folder, and you see parameters, memory, padding, speed, time, disk and cost of the whole.
    """
    if dry_run and continue_from_earlier:
        raise InputError(
            "a dry run continues nothing",
            where="--continue-from-earlier",
            remedy="Leave out this option, or --dry-run",
        )
    if dry_run:
        loaded, where = _load(recipe, profile, overrides, define)
        _log_to_terminal(quiet=True)
        from flows.train_cli import dry_run_and_print

        with interrupted_by_sigterm():
            return dry_run_and_print(loaded, where, workdir, _console(), use_ray=not no_ray)
    runs = _run_up_to(
        "train", recipe, workdir, profile, overrides, define,
        quiet=quiet, use_ray=not no_ray, continue_from_earlier=continue_from_earlier,
    )  # fmt: skip
    counters = runs["train"].manifest.counters
    from flows.summary import best_on_dev, ledger

    print(f"trained in {counters['updates']} updates, best on dev: {best_on_dev(counters)}")
    print(f"checkpoint: {runs['train'].folder / 'best'}")
    _print_table("Ledger", ledger(counters, load_profile(profile).prices))
    return _described_runs(runs)


@command(PARTS)
def stage(
    name: Annotated[str, typer.Argument(metavar="NAME", help="score, clean, fit_tokenizer, encode, train, ...")],
    recipe: RecipeArgument,
    workdir: Workdir = Path("runs"),
    profile: ProfileOption = None,
    overrides: Overrides = None,
    define: Define = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="STAGE=FOLDER", help="Take this finished stage; can be repeated."),
    ] = None,
    no_ray: NoRay = False,
    supervised: Annotated[
        bool, typer.Option("--supervised", hidden=True, help="Started by the flow: end when standard input closes.")
    ] = False,
    continue_from_earlier: FromEarlier = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> dict[str, Any]:
    """Run one stage in this process: what the flow starts for each stage, and what a cluster's job runs.

    Earlier stages are taken from --input, and run where they are neither given nor done.
    """
    if supervised:
        from flows.process import end_with_parent

        end_with_parent()
    from flows.stages import STAGE_NAMES, given_stage

    if name not in STAGE_NAMES:
        raise InputError("no such stage", where=name, remedy=f"Give one of {', '.join(STAGE_NAMES)}")
    pairs = _pairs(inputs, "--input", "STAGE=FOLDER")
    given = {earlier: given_stage(earlier, Path(folder)) for earlier, folder in pairs.items()}
    runs = _run_up_to(
        name, recipe, workdir, profile, overrides, define,
        quiet=quiet, use_ray=not no_ray, given=given, times=not supervised,
        continue_from_earlier=continue_from_earlier,
    )  # fmt: skip
    return _described_run(runs[name])


@command(PARTS)
def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run: WORKDIR/NAME.")],
    output: Annotated[Path | None, typer.Option(help="Where to write it. Default: report.html in that folder.")] = None,
    as_json: AsJson = False,
) -> dict[str, Any]:
    """Write report.html of a finished run again: one page, with everything in it, that needs no network."""
    _log_to_terminal(quiet=True)
    from flows.report import report as write_report
    from flows.run_folder import RunFolder

    run_folder = RunFolder(folder)
    path = run_folder.report if output is None else output
    manifest = run_folder.read()
    prices = manifest.profile.prices
    write_report(run_folder.stage_runs(), manifest.recipe, path, verdict=manifest.gate, prices=prices)
    print(f"report: {path}")
    return {"report": str(path)}


@command("Corpora")
def preview(
    recipe: RecipeArgument,
    rows: Annotated[int, typer.Option(min=1, help="Rows of train that are drawn, spread evenly.")] = 20_000,
    overrides: Overrides = None,
    define: Define = None,
    as_json: AsJson = False,
) -> dict[str, Any]:
    """Show what the thresholds of a recipe do, on a sample of its corpora. Nothing is written to the workdir.

    The rows drawn are scored and cleaned as in a run, against the same dev and test. You see what each rule drops, what
    it would drop alone, what no other one drops, and rows on both sides of its threshold. Repetitions are found only
    where both rows are drawn.
    """
    loaded = load_recipe(recipe, define=_definitions(define), overrides=overrides or (), with_model=False)
    _log_to_terminal(quiet=True)
    from flows.preview_cli import preview_and_print

    return preview_and_print(loaded, rows, _console())


@command("Corpora")
def explain(
    recipe: RecipeArgument,
    row: Annotated[
        str | None, typer.Option(metavar="CORPUS:LINE", help="A row of the recipe's corpora; lines count from 1.")
    ] = None,
    text: Annotated[
        tuple[str, str] | None, typer.Option(metavar="SOURCE TARGET", help="A pair that is scored on the spot.")
    ] = None,
    source: Annotated[str | None, typer.Option(metavar="TEXT", help="A text of the source language alone.")] = None,
    target: Annotated[str | None, typer.Option(metavar="TEXT", help="A text of the target language alone.")] = None,
    workdir: Workdir = Path("runs"),
    profile: ProfileOption = None,
    overrides: Overrides = None,
    define: Define = None,
    as_json: AsJson = False,
) -> dict[str, Any]:
    """Tell why a row is gone or kept: what each rule says of it, and which row it repeats or leaks.

    A row is looked up in the finished stages of the recipe. A text is scored on the spot with its thresholds; whether
    it leaks is known once the recipe's stage `clean` has finished.
    """
    loaded, where = _load(recipe, profile, overrides, define, with_model=False)
    _log_to_terminal(quiet=True)
    from flows.explain_cli import explain_and_print

    return explain_and_print(
        loaded, where, workdir, _console(), row=row, pair=text, source=source, target=target
    )  # fmt: skip


@command(MODELS)
def translate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The folder of a published model.")],
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="Text, one sentence a line.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Text, or Parquet where it ends in .parquet.")],
    profile: ProfileOption = None,
    overrides: Overrides = None,
    no_ray: NoRay = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> dict[str, Any]:
    """Translate a file with a published model: as many rows as the input has, in its order.

    The search is the one the model was published with; --set translate.beam_size=8 and the like change it.
    """
    changes = table_overrides("translate", overrides or ())
    where = load_profile(profile)
    _log_to_terminal(quiet)
    from nmt.translate import translate as translate_file

    figures: dict[str, Any] = translate_file(
        model, source, output, config_overrides=changes, ray=where.ray, use_ray=not no_ray
    )
    print(f"translated: {output}")
    return {"output": str(output), **figures}


@command(MODELS)
def score(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="A published model's folder, or that of a run: WORKDIR/NAME."),
    ],
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="Text, one sentence a line.")],
    target: Annotated[
        Path | None, typer.Argument(metavar="[TARGET]", help="Its translation line by line; not for a language model.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Text, or Parquet where it ends in .parquet. Default: standard output.")
    ] = None,
    profile: ProfileOption = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> dict[str, Any]:
    """Score pairs by a translation model, or texts by a language model: a row a line, in their order.

    A row has the log probability (nats), the pieces and the perplexity, between tabs. Pieces count the end of the
    sentence, so that an empty line is that alone. A line that cannot be read, or has more pieces than
    --set score.max_pieces, has none and is named. At the end comes the perplexity of all, per piece and per character.

    Of a run the model is the one that was trained last, published or not.
    """
    from nmt.config import ScoreConfig

    config, where = load_table(ScoreConfig, "score", overrides or ()), load_profile(profile)
    _log_to_terminal(quiet)
    from flows.score_cli import score_and_print

    return score_and_print(model, source, target, output, config, where.ray)


@command(MODELS)
def evaluate(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[MODEL|RUN]", help="A published model or a run: print its scores.")
    ] = None,
    hypotheses: Annotated[Path | None, typer.Option(help="Translations to score, one a line.")] = None,
    references: Annotated[Path | None, typer.Option(help="References, one a line; plain or .gz.")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> dict[str, Any]:
    """Score translations against references with sacreBLEU, or print the scores of a model or a run.

    Each score comes with its signature and its 95 % confidence interval. --set evaluate.bleu_tokenize=zh and the like
    change the metrics.
    """
    _log_to_terminal(quiet=True)
    from flows.summary import score_rows

    if folder is not None and hypotheses is None and references is None and not overrides:
        tests = _stored_scores(folder)
    elif folder is None and hypotheses is not None and references is not None:
        from nmt.config import EvaluateConfig
        from nmt.evaluate import evaluate_files

        config = load_table(EvaluateConfig, "evaluate", overrides or ())
        tests = {hypotheses.name: evaluate_files(hypotheses, references, config)}
    else:
        raise InputError(
            "give either a folder alone, or both --hypotheses and --references",
            where="seqloom evaluate",
            remedy="See `seqloom evaluate --help`",
        )
    _print_table("Scores", score_rows(tests))
    return {"tests": tests}


@command(MODELS)
def architectures(
    recipe: Annotated[
        str | None, typer.Argument(metavar="[RECIPE]", help="Whose sizes are taken. Default: the defaults.")
    ] = None,
    overrides: Overrides = None,
    define: Define = None,
    shapes: Annotated[
        bool, typer.Option("--shapes", help="Names and shapes of the parameters of the recipe's own model instead.")
    ] = False,
    as_json: AsJson = False,
) -> dict[str, Any]:
    """List the models that a recipe can name: papers, keys, parameters, and FLOPs per target piece.

    Each variant has the sizes and other keys of the recipe that it does not decide itself. Without a recipe: the
    defaults, and a vocabulary of 8,000 pieces.
    """
    loaded = None
    if recipe is not None:
        loaded = load_recipe(recipe, define=_definitions(define), overrides=overrides or (), with_model=False)
    elif overrides or define:
        raise InputError(
            "--set and --define change a recipe, and none is given",
            where="seqloom architectures",
            remedy="As in seqloom architectures demo-en-de --set model.hidden_dim=1024",
        )
    _log_to_terminal(quiet=True)
    from flows.architectures_cli import architectures_and_print, shapes_and_print

    return (shapes_and_print if shapes else architectures_and_print)(loaded, _console())


@command("Corpora")
def fetch(
    what: Annotated[str, typer.Argument(metavar="WHAT", help="opus:CORPUS, sacrebleu:TESTSET, or a URL.")],
    output: Annotated[Path, typer.Option(help="The folder that it goes to.", file_okay=False)],
    languages: Annotated[
        str | None, typer.Option(metavar="SRC-TGT", help="As the catalogue has them: en-de, en-pt_BR.")
    ] = None,
    version: Annotated[str | None, typer.Option(help="Of an OPUS corpus. Default: the newest.")] = None,
    sha256: Annotated[str | None, typer.Option(metavar="HEX", help="Of the file, or of OPUS's zip.")] = None,
    unverified: Annotated[
        bool, typer.Option("--unverified", help="Take what the URL gives; its sha256 is told.")
    ] = False,
    licence: Annotated[str | None, typer.Option(help="In place of the one that comes with it.")] = None,
    opus_api: Annotated[
        str | None, typer.Option(envvar="SEQLOOM_OPUS_API", help="Another server of OPUS's API.")
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> dict[str, Any]:
    """Download a corpus of OPUS, a test set that sacreBLEU knows, or a file, and print its lines for a recipe.

    What broke off is continued, what is there is not fetched again, and nothing appears before it is whole and
    verified. A record stands beside it, NAME.source.json: URL, version, licence, sha256.
    """
    _log_to_terminal(quiet)
    from flows.fetch_cli import fetch_and_print

    return fetch_and_print(
        what, output, quiet=quiet, unverified=unverified,
        languages=languages, version=version, sha256=sha256, licence=licence, opus_api=opus_api,
    )  # fmt: skip


@command(HELP, "schema")
def print_schema(as_json: AsJson = False) -> dict[str, Any]:
    """Print the JSON schema of recipes and profiles: every key, its type, range and default."""
    described = schema()
    if not as_json:
        print(json.dumps(described, indent=2, ensure_ascii=False))
    return described


def _load(
    recipe: str,
    profile: str | None,
    overrides: Sequence[str] | None,
    define: Sequence[str] | None,
    *,
    with_model: bool = True,
) -> tuple[Recipe, Profile]:
    loaded = load_recipe(recipe, define=_definitions(define), overrides=overrides or (), with_model=with_model)
    return loaded, load_profile(profile)


def _run_up_to(
    name: str,
    recipe: str,
    workdir: Path,
    profile: str | None,
    overrides: Sequence[str] | None,
    define: Sequence[str] | None,
    *,
    quiet: bool,
    use_ray: bool = True,
    given: Mapping[str, StageRun] | None = None,
    times: bool = True,
    continue_from_earlier: bool = False,
) -> dict[str, StageRun]:
    # The process of one stage has the recipe from a flow that has checked all of it.
    with_model = given is None or name == "train"
    loaded, where = _load(recipe, profile, overrides, define, with_model=with_model)
    _log_to_terminal(quiet, times=times)
    from flows.run_folder import RunFolder
    from flows.stages import run_up_to

    runs = run_up_to(
        name, loaded, where, workdir, given=given, use_ray=use_ray, continue_from_earlier=continue_from_earlier
    )
    RunFolder.of(workdir, loaded).link(runs)
    return runs


def _definitions(define: Sequence[str] | None) -> dict[str, str]:
    return _pairs(define, "--define", "NAME=VALUE")


def _pairs(values: Sequence[str] | None, option: str, form: str) -> dict[str, str]:
    pairs = {}
    for value in values or ():
        name, equals, given = value.partition("=")
        if not equals or not name:
            raise InputError(f"not of the form {form}", where=f"{option} {value}", remedy=f"As in {option} {form}")
        pairs[name] = given
    return pairs


def _stored_scores(folder: Path) -> dict[str, Any]:
    path = folder / "scores.json"
    if not path.is_file():
        raise InputError(
            "no scores.json here", where=str(folder), remedy="Give the folder of a published model or of a finished run"
        )
    tests: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["tests"]
    return tests


def _log_to_terminal(quiet: bool, *, times: bool = True) -> None:
    """Send our log's lines to standard error, in place of any handler that a library has set up."""
    form = "%(asctime)s %(message)s" if times else "%(message)s"
    logging.basicConfig(format=form, datefmt="%H:%M:%S", level=logging.WARNING, stream=sys.stderr, force=True)
    logging.getLogger().handlers[0].addFilter(_is_about_the_run)
    for name in OWN_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING if quiet else logging.INFO)
    for name, level in QUIET_LOGGERS.items():
        logging.getLogger(name).setLevel(level)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def _is_about_the_run(record: logging.LogRecord) -> bool:
    # Beam warns through the root logger that it has no Google Cloud client.
    return "apache_beam" not in record.pathname or record.levelno >= logging.ERROR


def _prepare_prefect(workdir: Path) -> None:
    """Set what Prefect reads from the environment at its import: no telemetry, and its files in the workdir."""
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    if "PREFECT_API_URL" not in os.environ and "PREFECT_HOME" not in os.environ:
        home = (workdir / ".prefect").resolve()
        home.mkdir(parents=True, exist_ok=True)
        os.environ["PREFECT_HOME"] = str(home)
    # The first start makes a database, which takes a while on a busy machine.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", str(PREFECT_START_S))


def _end(message: str | None, status: int, described: dict[str, Any] | None) -> None:
    if message is not None:
        Console(stderr=True, soft_wrap=True).print(Text("error: ", style="bold red") + Text(message))
    if described is not None:
        print(json.dumps(described, ensure_ascii=False))
    raise typer.Exit(status)


def _console() -> Console:
    # Asked at each use: --json has then put standard error in the place of standard output.
    return Console() if sys.stdout.isatty() else Console(width=PIPED_WIDTH)


def _print_plan(stages: Sequence[PlannedStage], quiet: bool) -> None:
    if quiet:
        return
    table = Table("stage", "", "why", title="Plan", title_justify="left", box=None, pad_edge=False)
    for planned in stages:
        table.add_row(planned.name, "run" if planned.runs else "reuse", planned.reason)
    _console().print(table)


def _print_table(title: str, rows: Rows) -> None:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for position, name in enumerate(rows.header):
        number = position > 0 and name not in ("metric", "signature")
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for row in rows.rows:
        table.add_row(*row)
    console = _console()
    console.print()
    console.print(table)


def _print_result(runs: Mapping[str, StageRun], result: Mapping[str, Any], prices: PricesConfig) -> None:
    """Print what a run has come to: waterfall, scores, translations, the gate's answer and where the report is."""
    from flows import summary

    _print_table("Waterfall", summary.waterfall(runs["clean"]))
    console = _console()
    if "evaluate" in runs:
        _print_translations(summary.translations(runs["clean"], runs["translate"], PRINTED_TRANSLATIONS))
        _print_table("Scores", summary.scores(runs["evaluate"]))
    else:
        console.print(f"\nbest on dev: {summary.best_on_dev(runs['train'].manifest.counters)}")
    _print_table("Ledger", summary.ledger(runs["train"].manifest.counters, prices))
    gate = result["gate"]
    verdict = f"published: {gate['model']}" if gate["published"] else "not published"
    console.print()
    for line in (verdict, *(f"  {reason}" for reason in gate["reasons"]), f"report: {result['report']}"):
        console.print(Text(line), soft_wrap=True)


def _print_translations(translations: Sequence[Translation]) -> None:
    console = _console()
    for translation in translations:
        console.print()
        console.print(Text(f"source      {translation.source}"), soft_wrap=True)
        console.print(Text(f"reference   {translation.reference}"), soft_wrap=True)
        console.print(Text(f"hypothesis  {translation.hypothesis}"), soft_wrap=True)


def _described_runs(runs: Mapping[str, StageRun]) -> dict[str, Any]:
    return {name: _described_run(run) for name, run in runs.items()}


def _described_run(run: StageRun) -> dict[str, Any]:
    manifest = run.manifest
    figures = {"seconds": manifest.seconds, "counters": manifest.counters}
    return {"stage": manifest.stage, "folder": str(run.folder), "reused": run.reused, **figures}


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


if __name__ == "__main__":
    main()
