"""`python -m planet_jax.main [COMMAND] --config FILE [--config.OPTION=VALUE ...]`

Commands: those of `commands.COMMANDS`; train when none is named. Ends with 0 when done, 2 at what
the user can mend, 143 when stopped by SIGTERM after saving, 130 by Ctrl-C, 1 at a failure.
"""

from planet_jax.runtime import memory, signals

if __name__ == "__main__":
    signals.hold()
    memory.tune()
    signals.install()  # before the imports, which take seconds

import os
import sys
import warnings
from glob import glob
from pathlib import Path
from typing import NoReturn

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from planet_jax import commands, config, config_file
from planet_jax.runtime import distributed
from planet_jax.runtime.errors import BadInput, RunFailed, did_you_mean, resource_error

config_flags.register_flag_parser_for_type(tuple, config_file.TupleParser())
FLAG = config_flags.DEFINE_config_file("config", help_string="a file of configs/, then its options")
TARGET = flags.DEFINE_string("target", "", "of preflight: v5e:2x4, h100:8, ...")
JSON = flags.DEFINE_boolean("json", False, "of preflight: figures for tools")
COMPILED = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "planet_jax" / "xla"
# Device files of CUDA (in WSL too), ROCm and TPUs.
DEVICES = ("/dev/nvidia*", "/dev/dxg", "/dev/kfd", "/dev/accel*", "/dev/vfio/*")


def parse(argv: list[str]) -> list[str]:
    """Parses absl's flags; all that can be wrong with them ends here, in one line."""
    try:
        config_file.check_flags(argv[1:])
        return flags.FLAGS(argv)
    except (BadInput, flags.Error) as error:
        end(error, 2)
    except Exception as error:  # the config file is the user's code
        end(config_file.file_error("the --config file", error), 2)


def main(argv: list[str]) -> None:
    """Runs one command of one config."""
    logging.set_verbosity(logging.WARNING)
    warnings.formatwarning = in_one_line
    jax.config.update("jax_compilation_cache_dir", str(COMPILED))
    if not os.environ.get("JAX_PLATFORMS") and not accelerator_here():
        jax.config.update("jax_platforms", "cpu")  # plugins that are installed would only complain
    try:
        command, *others = argv[1:] or ["train"]
        if command not in commands.COMMANDS or others:
            wrong = " ".join(others) or command
            raise BadInput(f"{wrong} is no command; {did_you_mean(wrong, commands.COMMANDS)}")
        if FLAG.value is None:
            raise BadInput("--config is missing; try --config configs/smoke.py")
        config.validate(FLAG.value)
        distributed.initialize(FLAG.value.hosts, finishes_step=command in ("train", "journey"))
        distributed.require_same({"the command": command, **config.shared_by_processes(FLAG.value)})
        more = {
            "journey": {"overrides": config_flags.get_override_values(flags.FLAGS["config"])},
            "preflight": {"target": TARGET.value, "as_json": JSON.value},
        }
        commands.COMMANDS[command](FLAG.value, **more.get(command, {}))
        distributed.barrier()
    except (BadInput, RunFailed) as error:
        end(error, 2 if isinstance(error, BadInput) else 1)
    except SystemExit as stop:
        distributed.end(stop.code, "was stopped")
        raise
    except Exception as error:
        if (line := resource_error(error)) is None:
            raise
        end(line, 2)


def accelerator_here() -> bool:
    """Whether this machine shows a GPU's or TPU's device file; elsewhere than Linux: it may."""
    return sys.platform != "linux" or any(map(glob, DEVICES))


def in_one_line(
    message: Warning | str, category: type, filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning as users see it."""
    text = " ".join(str(message).split())
    # JAX does without the cache then; an entry that a full disk or a kill cut short it never mends.
    hint = f"; if this stays, remove {COMPILED}" if "persistent compilation cache" in text else ""
    return f"planet_jax: {text}{hint}\n"


def end(message: object, status: int) -> NoReturn:
    """Ends with one line."""
    line = " ".join(str(message).split())
    print("planet_jax:", line, file=sys.stderr)
    distributed.end(status, f"ended: {line}")
    sys.exit(status)


if __name__ == "__main__":
    try:
        app.run(main, flags_parser=parse)
    finally:
        signals.ignore()
