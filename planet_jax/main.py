"""`python -m planet_jax.main [COMMAND] --config FILE [--config.OPTION=VALUE ...]`

An installed package also runs as `planet-jax`. FILE is a path, or the name of a shipped config.

Exit status: 0 done, 1 a failure, 2 a mistake in the input, 130 Ctrl-C, 143 SIGTERM, 141 when the
reader of the output has ended, 134 when JAX ends a process because another one of the run was lost.
"""

import contextlib
import faulthandler
import io
import os
import select
import signal
import sys
import time
import traceback
import warnings

from absl import app, flags, logging
from ml_collections import config_flags

from planet_jax import config, config_file
from planet_jax.runtime import memory
from planet_jax.runtime.errors import BadInput, RunFailed, did_you_mean, resource_error

COMMANDS = (  # functions of commands.py, which imports all libraries
    "train", "prepare", "preflight", "summary", "show_batch", "lr_range", "evaluate", "predict",
    "export", "report", "journey",
)  # fmt: skip
config_flags.register_flag_parser_for_type(tuple, config_file.TupleParser())
FLAG = config_flags.DEFINE_config_file("config", help_string="a file of configs/, then its options")
TARGET = flags.DEFINE_string("target", "", "preflight: v5e:2x4, h100:8, ...")
JSON = flags.DEFINE_boolean("json", False, "preflight: print one JSON object")
WITHOUT_DEVICES = ("prepare", "preflight", "report")


def parse(argv: list[str]) -> list[str]:
    """Parse absl's flags; exit with one line and status 2 if they are wrong."""
    try:
        argv[1:] = config_file.check_flags(argv[1:])  # in place: ml_collections reads sys.argv
        return flags.FLAGS(argv)
    except flags.Error as error:
        sys.exit(report(BadInput(str(error))))
    except Exception as error:  # a config file can raise anything
        sys.exit(report(config_file.file_error("the --config file", error)))


def main(argv: list[str]) -> None:
    """Check the command and its config, then run it."""
    logging.set_verbosity(logging.WARNING)
    warnings.formatwarning = format_warning
    # Orbax leaves coroutines behind when a save fails; the error itself is reported.
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    try:
        command, *others = argv[1:] or ["train"]
        if command not in COMMANDS or others:
            wrong = " ".join(others) or command
            raise BadInput(f"{wrong} is not a command; {did_you_mean(wrong, COMMANDS)}")
        if FLAG.value is None:
            raise BadInput("--config is missing; try --config smoke")
        config.validate(FLAG.value)
    except BadInput as error:
        sys.exit(report(error))
    run(command)


def run(command: str) -> None:
    """Set up jax, join the other processes and call the command."""
    import jax  # imported late: a mistyped command must not wait for it

    from planet_jax import backend
    from planet_jax.runtime import distributed

    flag = flags.FLAGS["config"]
    arguments = {
        "journey": {
            "overrides": config_flags.get_override_values(flag),
            "file": config_flags.get_config_filename(flag),
        },
        "preflight": {"target": TARGET.value, "as_json": JSON.value},
    }
    if FLAG.value.hosts.coordinator:
        # absl enables faulthandler, which reads other threads' frames when JAX aborts and can crash
        # (SIGSEGV instead of SIGABRT: cpython issue 116008).
        faulthandler.disable()
    try:
        backend.configure()
        if command not in WITHOUT_DEVICES:
            backend.require_devices(initialize=not FLAG.value.hosts.coordinator)
        from planet_jax import commands  # imports all libraries

        distributed.initialize(FLAG.value.hosts, saves_on_sigterm=command in ("train", "journey"))
        shared = config.shared_by_processes(FLAG.value)
        distributed.require_same({"the command": command, **shared})
        getattr(commands, command)(FLAG.value, **arguments.get(command, {}))
        distributed.require_same({})  # all processes end together
        print(end="", flush=True)  # a closed pipe raises here, not when Python ends
    except Exception as error:
        if isinstance(error, BrokenPipeError) and is_output_closed():  # by `| head`
            os._exit(128 + signal.SIGPIPE)  # the status that a shell reports for SIGPIPE
        if "Unable to initialize backend" in str(error):  # JAX's, in one of several processes
            error = backend.refusal(str(error))
        if distributed.process_count() == 1:
            sys.exit(report(error))
        if isinstance(error, jax.errors.JaxRuntimeError) and not resource_error(error):
            cause = str(error)[:200]
            report(RunFailed(f"a collective failed: was another process lost? ({cause})"))
            # If a process was lost, JAX logs its name and ends this process during the sleep.
            time.sleep(2 * distributed.HEARTBEAT_TIMEOUT)
        status = report(error)
        with contextlib.suppress(Exception):  # processes with the same error end together
            distributed.client().wait_at_barrier("planet_jax/exit", 5000)  # milliseconds
            # Else a process that is slower than the main one, JAX's coordinator, would be aborted.
            jax.distributed.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # JAX's own shutdown would wait for the other processes, then abort


def report(error: Exception) -> int:
    """Print an error, as one line if the user can act on it; return the exit status."""
    line = str(error) if isinstance(error, BadInput | RunFailed) else resource_error(error)
    if line is None:
        traceback.print_exc()
        return 1
    print("planet_jax:", " ".join(line.split()), file=sys.stderr)
    return 1 if isinstance(error, RunFailed) else 2


def format_warning(
    message: Warning | str, category: type, filename: str, lineno: int, line: str | None = None
) -> str:
    """Format a warning as one line."""
    text = " ".join(str(message).split())
    if "persistent compilation cache" in text:  # JAX ignores a damaged entry, but keeps it
        text += "; if it repeats, remove ~/.cache/planet_jax"
    return f"planet_jax: {text}\n"


def is_output_closed() -> bool:
    """Return whether the reader of stdout or stderr has ended."""
    poll = select.poll()
    for number in (1, 2):
        poll.register(number, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def open_streams() -> None:
    """Open closed standard streams, so that no other file gets their numbers.

    Set stdout to write \\u escapes for characters that the terminal cannot show.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def cli() -> None:
    """Run the command of sys.argv: the entry point `planet-jax`."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's handler waits for compilations
    memory.limit_arenas()
    open_streams()
    app.run(main, flags_parser=parse)


if __name__ == "__main__":
    cli()
