"""The `edgec` command. Commands live in cli_build.py, cli_use.py, cli_ship.py; here are the app, errors, exit codes."""

from __future__ import annotations

import os
import sys
import time
import traceback
from typing import Annotated, Any

import typer

import edgec
from edgec import cli_build, cli_output, cli_ship, cli_train, cli_use
from edgec.errors import CODES, EXIT_INTERRUPTED, EXIT_OK, EdgecError

app = typer.Typer(
    name="edgec", no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Compile PyTorch and Hugging Face models to one file for edge devices, and run, compare and measure it.",
)
cli_build.register(app)
cli_train.register(app)
cli_use.register(app)
cli_ship.register(app)

# typer carries its own copy of click; the base class of its usage errors is found without naming that copy.
_ClickError: type[Any] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def _version(value: bool) -> None:
    if value:
        sys.stdout.write(f"edgec {edgec.__version__}\n")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Data goes to stdout, progress and notes to stderr. Exit codes: docs/cli.md."""


def _report(error: EdgecError, argv: list[str], started: float) -> int:
    """Shows `error`: words on stderr, and a JSON document on stdout when --json was asked for."""
    sys.stderr.write(error.render() + "\n")
    if "--json" in argv:
        command = next((word for word in argv if not word.startswith("-")), "")
        cli_output.print_json(cli_output.envelope(command, started, error=error.to_dict()))
    return error.exit_code


def _crash(problem: Exception, argv: list[str]) -> EdgecError:
    """Writes a crash report into the user's cache folder and returns the error that names it."""
    from edgec.targets.toolchain import cache_folder

    text = (
        f"edgec {edgec.__version__}, Python {sys.version}\narguments: {argv!r}\n\n"
        + "".join(traceback.format_exception(problem))
    )
    where = "not written"
    try:
        folder = cache_folder() / "crash"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
        path.write_text(text, encoding="utf-8")
        where = str(path)
    except OSError:
        sys.stderr.write(text)
    return EdgecError(
        "E0001", stage="edgec", where=f"crash report: {where}", found=f"{type(problem).__name__}: {problem}",
        hint="this is a defect in edgec; please report it with the crash report",
    )


def main(argv: list[str] | None = None) -> int:
    """Runs the command line `argv` (default: the process's) and returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    started = time.time()
    try:
        result = typer.main.get_command(app).main(args=argv, prog_name="edgec", standalone_mode=False)
        sys.stdout.flush()
        code = result if isinstance(result, int) else EXIT_OK
        if code == EXIT_INTERRUPTED:  # typer has caught the KeyboardInterrupt
            sys.stderr.write("interrupted\n")
        return code
    except typer.Exit as e:
        return e.exit_code
    except (KeyboardInterrupt, typer.Abort):
        sys.stderr.write("interrupted\n")
        return EXIT_INTERRUPTED
    except (BrokenPipeError, SystemExit) as e:
        # The reader of our output has gone, which typer and rich make an exit with 1, the code of a failed gate.
        # Nothing more can be said, and Python must not try at exit.
        if isinstance(e, SystemExit) and not isinstance(e.__context__, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except EdgecError as e:
        return _report(e, argv, started)
    except _ClickError as e:
        if type(e).__name__ == "NoArgsIsHelpError":
            sys.stderr.write(e.format_message() + "\n")
            return CODES["E0002"].exit
        message = e.format_message()
        return _report(
            EdgecError("E0002", stage="command line", found=message, hint="`edgec COMMAND --help` lists the options"),
            argv, started,
        )
    except Exception as e:
        return _report(_crash(e, argv), argv, started)


def program() -> None:
    """Entry point of the installed script."""
    sys.exit(main())
