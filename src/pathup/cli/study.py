"""The verb ``pathup study``: the blinded reading by pathologists."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pathup.cli.progress import Bars

app = typer.Typer(no_args_is_help=True, help="A blinded reading of real and synthetic images, in a browser.")

Folder = Annotated[Path, typer.Argument(help="The study's folder, which 'pathup study new' made.")]


@app.callback()
def study() -> None:
    """A blinded reading of real and synthetic images, in a browser."""


@app.command()
def new(
    folder: Annotated[Path, typer.Argument(help="Folder to be made.")],
    real: Annotated[Path, typer.Option(help="Real images: class folders, which may lie in train, val and test.")],
    synthetic: Annotated[Path, typer.Option(help="What 'pathup generate' wrote, or class folders.")],
    readers: Annotated[str, typer.Option(help="The readers' names, with commas between.")],
    per_class: Annotated[int, typer.Option(help="Images of every class and arm.")] = 10,
    repeats: Annotated[float, typer.Option(help="Share of the images that every reader sees twice.")] = 0.1,
    practice: Annotated[int, typer.Option(help="Images to begin with that do not count.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the images that are drawn, and of every reader's order.")] = 0,
    split: Annotated[str | None, typer.Option(help="Of real images in train, val, test. [default: test]")] = None,
    size: Annotated[int | None, typer.Option(help="Side of the images, px. [default: as large as all are]")] = None,
    mpp: Annotated[
        float | None, typer.Option(help="Micrometres per pixel, of all. [default: the coarsest that an image has]")
    ] = None,
    title: Annotated[str, typer.Option(help="What readers see above it.")] = "Reading of tissue images",
) -> None:
    """Draw the images of a reading, write them blinded, and make a link for every reader.

    Example: pathup study new reading --real BRACS_RoI --synthetic synthetic --per-class 10 --readers anna,ben,carla.
    """
    from pathup.study.folder import StudyRequest, new_study

    request = StudyRequest(
        folder=folder, real=real, synthetic=synthetic, per_class=per_class, repeats=repeats, practice=practice,
        readers=tuple(name.strip() for name in readers.split(",")), seed=seed, split=split, size_px=size, mpp=mpp,
        title=title,
    )  # fmt: skip
    with Bars() as bars:
        made = new_study(request, bars)
    typer.echo(
        f"{len(made.images)} images of {made.side_px} x {made.side_px} px at {made.mpp:g} um a pixel, "
        f"{len(made.practice)} for practice; each reader sees {made.count('study')}"
    )
    if len(made.practice) < practice:
        typer.echo(f"note: {practice} images for practice were asked for, but no more are left over")
    typer.echo(f"pathup study serve {folder} shows the readers' links")


@app.command()
def serve(
    folder: Folder,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for other machines.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 for any that is free.")] = 8000,
    address: Annotated[
        str | None, typer.Option(help="What links begin with, where readers come by another name (https://...).")
    ] = None,
) -> None:
    """Serve a study to its readers until it is stopped; answers are kept as they come.

    Other machines reach it only with --host. Put a web server with TLS before it where readers come over a network.

    Example: pathup study serve reading --host 0.0.0.0 --address https://reading.example.org.
    """
    from pathup.study.answers import Answers
    from pathup.study.app import study_app
    from pathup.study.folder import ADMINISTRATOR, StudyFolder
    from pathup.study.web import bound
    from pathup.study.web import serve as run

    found = StudyFolder(folder)
    with bound(host, port) as listening:
        start = (address or f"http://{host}:{listening.getsockname()[1]}").rstrip("/")
        for link, whose in found.links().items():
            is_administrator = whose == ADMINISTRATOR
            name = "progress" if is_administrator else found.readers[whose]
            typer.echo(f"{name}: {start}/{'admin' if is_administrator else 'r'}/{link}")
        answers = Answers(found.answers_file)
        try:
            run(study_app(found, answers), listening)
        finally:
            answers.close()


@app.command()
def report(
    folder: Folder,
    output: Annotated[Path | None, typer.Option(help="Folder to be made. [default: FOLDER/report]")] = None,
    margin: Annotated[float, typer.Option(help="Points by which synthetic images may score lower.")] = 1.0,
    interim: Annotated[
        bool, typer.Option("--interim", help="Although readers have images left; whoever sees it knows the key.")
    ] = False,
) -> None:
    """Make the report of a study: table 5, AUC, agreement, plots, one page.

    Example: pathup study report reading --margin 1.
    """
    from pathup.study.folder import StudyFolder
    from pathup.study.report import write_report

    for path in write_report(StudyFolder(folder), output or folder / "report", margin=margin, interim=interim):
        typer.echo(path)


@app.command()
def export(
    folder: Folder,
    target: Annotated[Path, typer.Argument(help="CSV file to be written.")],
    key: Annotated[
        bool, typer.Option("--key", help="With which image each answer is of, once all images are read.")
    ] = False,
) -> None:
    """Write every answer as CSV, with those that were changed later, for other programs.

    Example: pathup study export reading answers.csv --key.
    """
    from pathup.study.folder import StudyFolder
    from pathup.study.report import write_export

    typer.echo(f"{write_export(StudyFolder(folder), target, with_key=key)} answers written to {target}")
