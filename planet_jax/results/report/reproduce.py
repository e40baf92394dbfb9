"""Make the report's parts on hardware, versions, and how to repeat the run."""

import shlex
from typing import Any

from planet_jax.results.report import html
from planet_jax.results.report.run_folder import MissingPart, RunFolder, command


def hardware(run: RunFolder) -> str:
    """Show devices, processes, package versions, XLA's flags and the normalization."""
    devices: list[str] = run.about["devices"]
    kinds = {kind: devices.count(kind) for kind in dict.fromkeys(devices)}
    facts = {
        "devices": ", ".join(f"{count} × {kind}" for kind, count in kinds.items()),
        "processes": run.about.get("hosts", 1),
        **run.about["versions"],
        "XLA_FLAGS": run.about.get("xla_flags", ""),
    }
    if "mean" in run.about:  # older runs did not record it
        mean, std = (", ".join(map(str, run.about[name])) for name in ("mean", "std"))
        facts["normalization"] = f"mean {mean}; std {std}"
    return html.facts(facts)


def commands(run: RunFolder) -> str:
    """Show the commands that repeat this run."""
    lines = []
    if commit := run.about.get("git_commit"):
        lines.append(f"git checkout {commit}")
    pins = [f"{name}=={version}" for name, version in run.about["versions"].items()]
    lines += [shlex.join(["pip", "install", *pins]), ""]
    folders = [folder for end in run.members or [run.folder] for folder in run.chain_of(end)]
    lines += [command("train", run.options(folder)) for folder in dict.fromkeys(folders)]
    options = run.options(run.folder)
    lines += ["", command("evaluate", options | _scoring(run)), command("report", options)]
    text = "In the folder where it was run; all options that differ from their defaults are given:"
    return html.paragraph(text) + html.commands(lines)


def _scoring(run: RunFolder) -> dict[str, Any]:
    """Return the options of the last evaluation, which may differ from those of the training."""
    try:
        options: dict[str, Any] = run.metrics("options")["options"]
    except MissingPart:
        return {}
    return {name: value for name, value in options.items() if not name.startswith("predict.")}
