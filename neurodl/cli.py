"""The command line: ``neurodl`` and the names of what it does; each loads what it needs."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from neurodl import __version__
from neurodl.errors import NeurodlError, NeurodlWarning, did_you_mean

Command = Callable[[argparse.Namespace], int]
DESCRIPTION = "From recordings and stimuli to how well deep networks predict the brain."
DEFAULT = "default: %(default)s"
FAILED, USAGE, INTERRUPTED = 1, 2, 130
MOST_ROWS = 40  # of a table
DATASET_ACTIONS = ("list", "info", "fetch", "check")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command of the command line and return its exit status.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default those of the process.
    """
    # Threads that wait without spinning: on cores that other programs use as well, spinning makes
    # small decompositions a hundred times slower. It must be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    parser, commands = _parser()
    try:
        parsed, unknown = parser.parse_known_args(arguments)
        if unknown:
            commands.get(parsed.command, parser).error(f"unrecognized arguments: {unknown[0]}")
    except SystemExit as stop:
        return int(stop.code or 0)
    if parsed.command is None:
        parser.print_help()
        return USAGE
    _show_messages(parsed.debug)
    try:
        return int(parsed.function(parsed))
    except KeyboardInterrupt:
        _say("\nInterrupted. Features that were finished are cached: run it again to go on.")
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe has gone: nothing is left to say
        return FAILED
    except (NeurodlError, OSError, ValueError, TypeError) as error:
        if parsed.debug or not _is_for_users(error):
            raise
        _say(f"neurodl {parsed.command}: {error}")
        return FAILED


def _is_for_users(error: Exception) -> bool:
    """Return whether an error speaks to users: about a file, or raised by neurodl itself."""
    if isinstance(error, (NeurodlError, OSError)):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    return Path(frames[-1].filename).is_relative_to(Path(__file__).parent)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors name near matches."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the arguments, and end with the status for wrong usage."""
        known = [option for action in self._actions for option in action.option_strings]
        if "invalid choice" in message:
            wrong = message.split("'")[1]
            commands = next(action.choices for action in self._actions if action.choices)
            message = f"there is no command {wrong!r}. {did_you_mean(wrong, commands)}"
        elif "unrecognized arguments" in message:
            wrong = message.partition(": ")[2].split()[0]
            kind = "option" if wrong.startswith("-") else "further argument"
            hint = did_you_mean(wrong, known) if kind == "option" else ""
            message = f"there is no {kind} {wrong!r}. {hint}".rstrip()
        self.exit(USAGE, f"{self.prog}: {message}\n{self.format_usage()}")


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Return the parser of the whole command line, and those of its commands."""
    common = _Parser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show Python's traceback of errors")
    parser = _Parser(prog="neurodl", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"neurodl {__version__}")
    parser.set_defaults(debug=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)

    def add(name: str, function: Command, text: str) -> argparse.ArgumentParser:
        one = commands.add_parser(
            name, help=text, description=text, parents=[common], allow_abbrev=False
        )
        one.set_defaults(function=function)
        return one

    demo = add("demo", _demo, "simulate an fMRI experiment, analyse it, and compare with the truth")
    demo.add_argument("--out", default="neurodl-demo", metavar="FOLDER", help=DEFAULT)
    demo.add_argument("--backbone", metavar="NAME", help="the network; see `neurodl backbones`")
    source = demo.add_mutually_exclusive_group()
    source.add_argument("--weights", metavar="FILE", help="a file of weights for it")
    source.add_argument("--pretrained", action="store_true", help="download its weights")
    demo.add_argument("--seed", type=int, default=0, metavar="N", help=DEFAULT)
    run = add("run", _run, "run a study file and write a results folder")
    run.add_argument("study", metavar="study.toml")
    run.add_argument(
        "--out", metavar="FOLDER", help="or a URL; default: results/NAME beside the study"
    )
    run.add_argument("--check", action="store_true", help="only check the study file")
    run.add_argument(
        "--on",
        metavar="WHERE",
        help="dask: on workers, as [cluster] says; or the address of a scheduler",
    )
    run.add_argument(
        "--dry-run", action="store_true", help="with --on dask: show the script for SLURM"
    )
    planned = add("plan", _plan, "say what a study file would run, and what of it is done")
    planned.add_argument("study", metavar="study.toml")
    planned.add_argument("--out", metavar="FOLDER", help="as of `neurodl run`")
    planned.add_argument(
        "--estimate",
        action="store_true",
        help="open the data and try each network, to say time, disk, memory and what is cached",
    )
    again = add("reproduce", _reproduce, "run the study of a results folder again and compare")
    again.add_argument("results", metavar="FOLDER")
    again.add_argument(
        "--cached", action="store_true", help="take features from the cache, do not extract anew"
    )
    new = add("new", _new, "start a project from a template, with steps that are also notebooks")
    new.add_argument("name", nargs="?", metavar="NAME", help="the folder; without one, a list")
    new.add_argument("--template", metavar="TEMPLATE")
    new.add_argument(
        "--repository", default="", metavar="URL", help="where it will lie on GitHub, for Colab"
    )
    report = add("report", _report, "make a report of saved scores, or an index of several runs")
    report.add_argument(
        "scores", nargs="+", metavar="scores.nc", help="or results, a folder or URL, or several"
    )
    report.add_argument(
        "--out",
        metavar="FILE",
        help="default: report.html beside the scores; of several, index.html above them",
    )
    report.add_argument("--title")
    _add_options(add("datasets", _datasets, "list, describe, fetch or check datasets"))
    backbones = add("backbones", _backbones, "list the networks, or say all about one")
    backbones.add_argument("name", nargs="?", metavar="NAME")
    backbones.add_argument("--search", metavar="TEXT", help="only names that contain TEXT")
    backbones.add_argument(
        "--max-params", type=_count, metavar="N", help="at most N parameters, as in 30M"
    )
    backbones.add_argument("--limit", type=int, default=40, metavar="N", help=DEFAULT)
    cache = add("cache", _cache, "list, prune or verify the cache of features")
    cache.add_argument("action", choices=("list", "prune", "verify"))
    cache.add_argument("--folder", metavar="FOLDER", help="default: the usual one, see doctor")
    cache.add_argument("--days", type=float, metavar="N", help="prune what was unused for longer")
    cache.add_argument(
        "--max-size", type=_count, metavar="N", help="prune to N bytes, as in 20G, oldest use first"
    )
    cache.add_argument("--dry-run", action="store_true", help="only say what prune would remove")
    add("doctor", _doctor, "say what this machine has, what it lacks, and how to get it")
    return parser, dict(commands.choices)


def _add_options(datasets: argparse.ArgumentParser) -> None:
    """Add what chooses parts of a dataset."""
    datasets.add_argument("action", nargs="?", default="list", choices=DATASET_ACTIONS)
    datasets.add_argument("name", nargs="?", metavar="NAME")
    datasets.add_argument("--root", metavar="FOLDER", help="default: $NEURODL_DATA/NAME")
    datasets.add_argument("--subject", metavar="N", help="fetch: the first one; check: all")
    datasets.add_argument("--roi", action="append", metavar="ROI", help="may be given repeatedly")
    datasets.add_argument(
        "--option",
        action="append",
        type=_assignment,
        default=[],
        metavar="KEY=VALUE",
        help="one of the dataset's own, such as track=full",
    )
    datasets.add_argument("--open", action="store_true", help="check: also open it, to look inside")


def _assignment(text: str) -> tuple[str, Any]:
    """Return the two sides of KEY=VALUE; numbers, true and false are taken as such."""
    key, sign, value = text.partition("=")
    if not sign:
        raise argparse.ArgumentTypeError(f"must be KEY=VALUE, but got {text!r}")
    if value in ("true", "false"):
        return key, value == "true"
    return key, int(value) if value.isdigit() else value


def _count(text: str) -> float:
    """Return the number that a text such as 30M stands for."""
    unit = {"k": 1e3, "M": 1e6, "G": 1e9}.get(text[-1:])
    try:
        return float(text[:-1]) * unit if unit else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be a number such as 30M, but got {text!r}"
        ) from None


def _show_messages(debug: bool) -> None:
    """Send log messages and warnings to standard error, one line each."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("neurodl")
    log.handlers = [handler]
    log.setLevel(logging.DEBUG if debug else logging.INFO)

    def show(
        message: Warning | str, category: type[Warning], filename: str, *_: Any, **__: Any
    ) -> None:
        if issubclass(category, NeurodlWarning):
            _say(f"warning: {message}")
        elif debug:
            _say(f"{filename}: {category.__name__}: {message}")

    warnings.showwarning = show


def _demo(options: argparse.Namespace) -> int:
    from neurodl.study.demo import BACKBONE, run_demo

    found = run_demo(
        options.out,
        backbone=options.backbone or BACKBONE,
        weights=options.weights,
        pretrained=options.pretrained,
        seed=options.seed,
    )
    print("\nMean r over 5 folds, by layer and region:\n")
    print(found.table.rename_axis(index=None, columns=None).to_string(float_format="{:.3f}".format))
    print("\nWeights used:")
    for backbone, weights in found.weights.items():
        print(f"  {backbone}: {weights}")
    print("\nShare of the known ceiling that the best layer recovers (the noise is known here):\n")
    columns = {"best": "best layer", "known": "known ceiling", "estimated": "ceiling from repeats"}
    table = found.recovered.rename(columns=columns)
    table["share"] = [f"{share:.0%}" for share in table["share"]]
    print(table.to_string(float_format="{:.3f}".format))
    if "untrained" in " ".join(found.weights.values()):
        print(
            "\nThe network is untrained, so that the demo needs no internet; with --pretrained it "
            "downloads its weights."
        )
    print(f"\nReport: {found.results / 'report.html'}")
    return 0


def _run(options: argparse.Namespace) -> int:
    from neurodl.study import load_sweep, run_study, run_sweep
    from neurodl.study.sweep import sweep_place

    tasks = load_sweep(options.study)
    sweep = bool(tasks[0].name)
    if options.check:
        labels = tasks[0].study.labels()
        found = f"{len(labels)} feature spaces ({', '.join(labels)})"
        if sweep:
            found = f"a sweep of {len(tasks)} ({', '.join(task.name for task in tasks)})"
        print(f"{options.study} is fine: {found}.")
        return 0
    place = sweep_place(options.study, options.out, tasks)
    if options.dry_run:
        return _show_job(tasks[0].study, place.folder)
    if sweep or options.on:
        folder = run_sweep(options.study, options.out, on=options.on)
    else:
        folder = run_study(options.study, options.out)
    print(f"Results: {place}\nReport: {folder / ('index.html' if sweep else 'report.html')}")
    return 0


def _show_job(study: Any, folder: Path) -> int:
    """Show what SLURM would be given."""
    from neurodl.study.cluster import job_script

    if study.cluster is None or study.cluster.kind != "slurm":
        raise NeurodlError("--dry-run shows the script for SLURM: say kind = 'slurm' in [cluster].")
    print(job_script(study.cluster, folder), end="")
    return 0


def _plan(options: argparse.Namespace) -> int:
    from neurodl.study import plan

    table = plan(options.study, options.out, estimate=options.estimate)
    formats = dict.fromkeys(("stimuli", "cached", "extraction_s"), "{:.0f}".format)
    formats |= dict.fromkeys(("disk_mb", "memory_mb"), "{:,.1f}".format)
    problems = table.set_index("task")["problem"].dropna() if "problem" in table else {}
    table = table.drop(columns="problem", errors="ignore")
    print(table.to_string(index=False, na_rep="-", formatters=formats))
    counts = table["state"].value_counts()
    print("\n" + ", ".join(f"{n} {state}" for state, n in counts.items()))
    left = int((table["state"] != "done").sum())
    if 0 < left < len(table):
        minutes = left * table["seconds"].mean() / 60
        print(f"The rest takes about {minutes:.0f} min in one process, if it is like what is done.")
    if options.estimate and left:
        minutes, gigabytes = table["extraction_s"].sum() / 60, table["disk_mb"].sum() / 1e3
        print(
            f"Extraction takes about {minutes:.1f} min here and {gigabytes:.2f} GB of disk; "
            "scores come on top."
        )
    for task, problem in problems.items():
        _say(f"neurodl plan: {task or 'the study'} would fail: {problem}")
    return FAILED if len(problems) else 0


def _reproduce(options: argparse.Namespace) -> int:
    from neurodl.study import reproduce

    found = reproduce(options.results, cached=options.cached)
    print(found)
    return 0 if found.same else FAILED


def _new(options: argparse.Namespace) -> int:
    from neurodl.study.templates import list_templates, new_project

    if options.name is None or options.template is None:
        if options.name is not None:
            _say("Say which template: neurodl new NAME --template TEMPLATE\n")
        for name, question in list_templates().items():
            print(f"{name:<26}{question}")
        return 0 if options.name is None else USAGE
    folder = new_project(options.name, options.template, repository=options.repository)
    steps = ", ".join(path.name for path in sorted(folder.glob("[0-9][0-9]_*.py")))
    print(f"{folder}\n{steps}\nBegin with {folder / 'README.md'}; each step runs as it is.")
    return 0


def _report(options: argparse.Namespace) -> int:
    from neurodl.io.store import load
    from neurodl.reports import report

    options.scores = [_brought(name) for name in options.scores]
    source = Path(options.scores[0])
    if len(options.scores) > 1 or (source.is_dir() and not (source / "scores.nc").is_file()):
        return _index(options)
    source = source / "scores.nc" if source.is_dir() else source
    page = Path(options.out) if options.out else source.with_name("report.html")
    made = report(load(source), title=options.title)
    print(made.finding)
    print(f"Report: {made.save(page)}")
    return 0


def _brought(name: str) -> str:
    """Return the name of a file or folder; results in a store are brought here first."""
    from neurodl.study.results import Place, is_url

    return str(Place.of(name).pull()) if is_url(name) else name


def _index(options: argparse.Namespace) -> int:
    """Write a page over several runs, and reports of those that have none yet."""
    from neurodl.reports import report

    # What a shell's star names besides results, such as an older index, is left out.
    named = [Path(name) for name in options.scores]
    if len(named) > 1:
        named = [path for path in named if path.is_dir() or path.suffix not in (".html", ".tsv")]
    made = report(named, title=options.title)
    folders = [run.folder for run in made.runs if run.folder is not None]
    above = Path(os.path.commonpath([folder.absolute() for folder in folders])) if folders else None
    if above is not None and len(folders) == 1:
        above = above.parent
    page = Path(options.out) if options.out else (above or Path.cwd()) / "index.html"
    for run in made.runs:
        if run.folder is not None and run.page is None:
            run.report.save(run.folder / "report.html")
    print(made.finding)
    print(f"Report: {made.save(page)}")
    return 0


def _datasets(options: argparse.Namespace) -> int:
    import inspect

    from neurodl.datasets import LOADERS, dataset_card, fetch_dataset, list_datasets

    if options.action == "list":
        table = list_datasets()[["modality", "access", "size"]].rename_axis(index=None)
        print(table.to_string())
        print("\n`neurodl datasets info NAME` says all about one.")
        return 0
    if options.name is None:
        names = ", ".join(list_datasets().index)
        raise NeurodlError(f"Say which dataset: `datasets {options.action} NAME`, of {names}.")
    if options.action == "info":
        card = dataset_card(options.name)
        options_of = inspect.signature(LOADERS[options.name]).parameters.values()
        given = [f"{one.name}={one.default!r}" for one in options_of if one.name != "root"]
        call = ", ".join([f'load_dataset("{options.name}"', *given]) + ")"
        _print_facts(card | {"call": call})
        return 0
    chosen = {"root": options.root, "subject": options.subject, "roi": options.roi}
    chosen |= dict(options.option)
    if options.action == "check":
        return _check_dataset(options.name, chosen, options.open)
    print(fetch_dataset(options.name, **chosen))
    return 0


def _check_dataset(name: str, chosen: dict[str, Any], inside: bool) -> int:
    from neurodl.datasets import check_dataset, data_folder, load_dataset

    table = check_dataset(name, **chosen)
    counts = table["state"].value_counts()
    wrong = table[~table["state"].isin(["whole", "missing, optional"])]
    shown = table if len(table) <= MOST_ROWS else wrong.head(MOST_ROWS)
    if len(shown):
        print(shown.to_string(index=False))
    print(", ".join(f"{count} {state}" for state, count in counts.items()) or "no files")
    if len(wrong) or not inside:
        return FAILED if len(wrong) else 0
    print(load_dataset(name, **(chosen | {"root": chosen["root"] or data_folder() / name})))
    return 0


def _backbones(options: argparse.Namespace) -> int:
    from neurodl.backbones import list_backbones, load_backbone

    if options.name is None:
        names = list_backbones(options.search)
        if options.max_params is not None:
            return _small_backbones(names, options.max_params, options.limit)
        shown = names if options.limit <= 0 else names[: options.limit]
        print("\n".join(shown))
        if len(shown) < len(names):
            print(f"... and {len(names) - len(shown)} more: --search TEXT, or --limit 0 for all.")
        return 0
    backbone = load_backbone(options.name, pretrained=False)
    n_parameters = sum(values.numel() for values in backbone.module.parameters())
    _print_facts(
        {
            "name": backbone.name,
            "takes": f"{backbone.kind}s",
            "licence": backbone.licence,
            "parameters": f"{n_parameters:,}",
            "transform": backbone.transform.text,
            "default layers": ", ".join(backbone.default_layers),
            "all layers": ", ".join(backbone.layers),
        }
    )
    return 0


def _small_backbones(names: list[str], most: float, limit: int) -> int:
    """Print the first networks that are small enough, with their numbers of parameters."""
    from neurodl.backbones.size import count_parameters

    n_shown = 0
    for number, name in enumerate(names):
        if n_shown == limit:
            print(f"{len(names) - number} names not counted: --search TEXT, or --limit 0 for all.")
            break
        n_parameters = count_parameters(name)
        if n_parameters <= most:
            n_shown += 1
            print(f"{n_parameters / 1e6:8.1f} M  {name}")
    return 0


def _cache(options: argparse.Namespace) -> int:
    from neurodl.features import list_cache, prune_cache, verify_cache

    pruning = [options.days is not None, options.max_size is not None, options.dry_run]
    if options.action != "prune" and any(pruning):
        raise ValueError("--days, --max-size and --dry-run are only for `neurodl cache prune`.")
    if options.action == "list":
        table, said = list_cache(options.folder), "in the cache"
    elif options.action == "prune":
        table = prune_cache(
            days=options.days,
            max_bytes=options.max_size,
            cache=options.folder,
            dry_run=options.dry_run,
        )
        said = "would be removed" if options.dry_run else "removed"
    else:
        table, said = verify_cache(options.folder), "damaged; what was damaged is removed"
    if len(table):
        table["last used"] = table["last used"].dt.strftime("%Y-%m-%d %H:%M")
        print(table.to_string(index=False, float_format="{:.1f}".format))
    print(f"{len(table)} layers ({table['MB'].sum():,.1f} MB) {said}.")
    return 0


def _print_facts(facts: dict[str, str]) -> None:
    """Print terms and texts, long ones wrapped beside their term."""
    import shutil
    import textwrap

    width = min(shutil.get_terminal_size().columns, 100)
    margin = max(len(term) for term in facts) + 2
    for term, text in facts.items():
        lines = textwrap.wrap(text, max(width - margin, 40), break_on_hyphens=False) or [""]
        print(f"{term:<{margin}}" + f"\n{'':<{margin}}".join(lines))


def _doctor(_: argparse.Namespace) -> int:
    from neurodl.doctor import examine

    findings = examine()
    for finding in findings:
        print(f"{'ok  ' if finding.ok else 'LACK'}  {finding.what:<14} {finding.found}")
        if finding.remedy:
            print(f"{'':22}{finding.remedy}")
    lacking = [finding for finding in findings if not finding.ok]
    n = len(lacking)
    print(f"\n{n} thing{'s' if n > 1 else ''} to mend." if n else "\nEverything is there.")
    return FAILED if any(finding.needed for finding in lacking) else 0
