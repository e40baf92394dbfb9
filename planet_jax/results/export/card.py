"""Write the model card of an export: README.md."""

from typing import Any

IN_TORCH = """## In torch
`torchvision.models.{network}().load_state_dict(safetensors.torch.load_file("model.safetensors"),
strict=False)` reports `fc.*` as missing and `head.*` as unexpected, and nothing else. The head is
`head.2` (BatchNorm1d), `head.4` (Linear), `head.6` (BatchNorm1d) and `head.8` (Linear), numbered as
in fastai's `nn.Sequential`: concat-pool (maximum first), flatten, BatchNorm, dropout, linear, ReLU,
BatchNorm, dropout, linear. First divide pixels by 255, subtract {mean} and divide by {std}.

"""


def model_card(model: dict[str, Any]) -> str:
    """Return the Markdown text for the content of model.json."""
    run, chips, serving = model["run"], model["input"], model["serving"]
    size, max_side = chips["size"], chips["most_pixels"]
    probability = "calibrated (Platt) probability" if model["calibrated"] else "probability"
    views = (
        "averages the eight dihedral views of a chip, each"
        if model["views"] != "none"
        else "sees a chip"
    )
    return f"""# {run["name"]}
A `{run["network"]}` with fastai's concat-pool head. It predicts a {probability} for each of
{len(model["classes"])} labels, independently: {", ".join(model["classes"])}.

- Training data: {_chips(run["training_chips"])} of `{run["data"]}`, in {run["precision"]}.
- Weights: step {run["step"]}, checkpoint `{run["checkpoint"]}`.
- Made by planet_jax {run["planet_jax"]}, git commit {run["git_commit"] or "unknown"}.

## Scores
{_scores(model["scores"], run["validation_chips"])}

## Files
| file | content |
| --- | --- |
| `serving.bin` | the function with its weights, serialized by `jax.export` |
| `model.safetensors` | the same weights, float32, with torchvision's names and torch's layout |
| `config.json` | architecture, labels and normalization, in timm's layout |
| `model.json` | the labels in the order of the columns, their thresholds, and the facts above |
| `example.py` | loads `serving.bin` and predicts a `.npy` file |
| `digests.json` | the SHA-256 of every other file; compare with `sha256sum *` |

## The function
`jax.export.deserialize(bytearray(...)).call(chips)` takes {chips["chips"]}, for any b and for h
and w up to {max_side}. It returns float32 [b, classes]. It {views} at {size}x{size} pixels.
Chips of another size are resized first, without keeping the aspect ratio. Chips more than twice as
large are shrunk by area averaging. Then all are sampled bilinearly, with their corners aligned. The
result differs by at most two of 255 levels from the resize used in validation. A label is predicted
when its value is above its threshold in `model.json` (`{model["decision"]}`).

`serving.bin` was written by jax {serving["jax"]} with calling convention
{serving["calling_convention"]} for {", ".join(serving["platforms"])}. It needs jax, numpy and
flatbuffers. Newer versions of jax read it for at least six months after the release of
jax {serving["jax"]}. Older versions may be unable to read it. If it cannot be read or run,
`example.py` ends with one line that says why. On a CPU the values for chips of
{size}x{size} pixels equal those of `predict` to 1e-6. GPUs and TPUs multiply float32 with lower
precision, unless `jax_default_matmul_precision` is `highest`.

    pip install jax=={serving["jax"]} numpy flatbuffers
    python example.py chips.npy

{_in_torch(model)}## Limits
The model is only suitable for chips and labels like those it was trained on. The scores
above are for chips of the same data. Score it again before using it for another sensor, resolution,
season or region.
"""


def _in_torch(model: dict[str, Any]) -> str:
    """Return how torchvision loads the weights, or "" for a network that it does not have."""
    network, chips = model["run"]["network"], model["input"]
    if network == "tiny":
        return ""
    return IN_TORCH.format(network=network, mean=chips["mean"], std=chips["std"])


def _chips(count: int | None) -> str:
    return "an unknown number of chips" if count is None else f"{count} chips"


def _scores(scores: dict[str, Any] | None, valid_chips: int | None) -> str:
    """Return a Markdown table of scores with their intervals."""
    if scores is None:
        return "None: this model was not evaluated before the export."
    threshold, decision = scores["threshold"], scores["decision"]
    rule = decision["rule"] + (", calibrated" if decision["calibrate"] else "")
    rows = {
        "loss (binary cross-entropy)": scores["valid_loss"],
        f"accuracy at threshold {threshold}": scores["accuracy_thresh"],
        f"F2 at threshold {threshold}": scores["fbeta"],
        f"F2 as evaluated by `{rule}`": [decision["fbeta"], *decision["interval"]],
    }
    all_chips = (
        f"{scores['chips']}" if valid_chips is None else f"{scores['chips']} of {valid_chips}"
    )
    lines = [
        f"On {all_chips} validation chips:",
        "",
        "| score | value | 95% interval (bootstrap) |",
        "| --- | --- | --- |",
        *(
            f"| {name} | {v:.4f} | {low:.4f} to {high:.4f} |"
            for name, (v, low, high) in rows.items()
        ),
    ]
    return "\n".join(lines)
