"""The commands: verbs over the library, no arithmetic. Heavy imports are inside the commands."""

import atexit
import gc
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

import click

from wdecomp.cli.audit import audit
from wdecomp.cli.check import check
from wdecomp.cli.compare import compare
from wdecomp.cli.console import say_error
from wdecomp.cli.demo import demo
from wdecomp.cli.export import export
from wdecomp.cli.finish import finish
from wdecomp.cli.gradients import gradients
from wdecomp.cli.inspect import inspect
from wdecomp.cli.merge import merge
from wdecomp.cli.plot import plot
from wdecomp.cli.report import report
from wdecomp.cli.reproduce import reproduce
from wdecomp.cli.stopping import stoppable, tell
from wdecomp.cli.train import train
from wdecomp.cli.verify import verify
from wdecomp.cli.view import view
from wdecomp.errors import UnfinishedError, WdecompError

TRACEBACK = "WDECOMP_TRACEBACK"  # in the environment: errors of our own are shown with their place
UNFINISHED = 75  # EX_TEMPFAIL of sysexits.h: job systems know it as "again later"
OBJECTS = 1_000_000  # between collections: imports make so many that stay, and no garbage


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("wdecomp"), prog_name="wdecomp")
def commands() -> None:
    """What did fine-tuning do to the weights?

    Splits every weight column into magnitude and direction and measures how far each moved
    between a base model and its fine-tuned checkpoints.
    """


commands.add_command(compare)
commands.add_command(finish)
commands.add_command(inspect)
commands.add_command(audit)
commands.add_command(check)
commands.add_command(view)
commands.add_command(report)
commands.add_command(plot)
commands.add_command(export)
commands.add_command(merge)
commands.add_command(verify)
commands.add_command(train)
commands.add_command(gradients)
commands.add_command(demo)
commands.add_command(reproduce)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits with its code.

    0 done, 1 bad input, 2 wrong usage, 75 to be continued, 130 or 143 interrupted.
    """
    gc.set_threshold(OBJECTS)
    atexit.register(gc.freeze)  # the process's memory goes back whole, not object by object
    words = sys.argv[1:] if arguments is None else arguments
    try:
        with stoppable(next(iter(words), "")):
            commands.main(arguments, standalone_mode=False)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except WdecompError as error:
        say_error(str(error))
        sys.exit(UNFINISHED if isinstance(error, UnfinishedError) else 1)
    except (KeyboardInterrupt, click.Abort) as error:
        sys.exit(tell(error))
    except MemoryError:
        say_error("there is not enough memory. Give the same command again with fewer --workers.")
        sys.exit(1)
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:
        if TRACEBACK in os.environ:
            raise
        what = f"{type(error).__name__}: {error}".rstrip(": ")
        say_error(f"stopped at a mistake of its own ({what}). {TRACEBACK}=1 shows where it was.")
        sys.exit(1)
