"""Describe an export to the Hugging Face hub: config.json, and the front matter of README.md."""

from typing import Any


def hub_config(model: dict[str, Any], license_name: str) -> dict[str, Any]:
    """Return the content of config.json for the content of model.json, in timm's layout."""
    chips = model["input"]
    return {
        "architecture": model["run"]["network"],
        "num_classes": len(model["classes"]),
        "label_names": model["classes"],
        "license": license_name,
        "pretrained_cfg": {
            "input_size": [3, chips["size"], chips["size"]],
            "interpolation": "bilinear",
            "mean": chips["mean"],
            "std": chips["std"],
            "license": license_name,
        },
    }


def front_matter(model: dict[str, Any], license_name: str) -> str:
    """Return the YAML at the top of README.md, with the license, tags and scores."""
    from huggingface_hub import EvalResult, ModelCardData  # heavy, and needed only here

    run, scores = model["run"], model["scores"] or {}
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=run["data"],
            dataset_name=run["data"],
            dataset_split="validation",
            metric_type=kind,
            metric_name=name,
            metric_value=scores[key][0],
        )
        for key, kind, name in (
            ("fbeta", "f2", "F2"),
            ("accuracy_thresh", "accuracy", "accuracy of all labels"),
        )
        if key in scores
    ]
    data = ModelCardData(
        license=license_name,
        library_name="planet_jax",
        pipeline_tag="image-classification",
        tags=["jax", "flax", run["network"], "multi-label-classification", "remote-sensing"],
        model_name=run["name"],
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---\n\n"
