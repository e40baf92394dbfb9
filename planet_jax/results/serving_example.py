"""Tags of chips, by the files beside this one: python example.py CHIPS.npy

CHIPS.npy holds uint8 [b, h, w, 3], RGB. Needs jax, numpy and flatbuffers.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from jax import export

here = Path(__file__).parent
model = json.loads((here / "model.json").read_text())
try:
    serving = export.deserialize(bytearray((here / "serving.bin").read_bytes()))
    chips = np.load(sys.argv[1])
    if max(chips.shape[1:3]) > model["input"]["most_pixels"]:
        raise ValueError(f"a side of {chips.shape} is above {model['input']['most_pixels']} pixels")
    probabilities = np.asarray(jax.jit(serving.call)(chips))  # float32 [b, classes]
except Exception as error:
    sys.exit(f"jax {jax.__version__} (serving.bin: {model['serving']}): {error or sys.argv}")
thresholds = np.array([model["thresholds"][name] for name in model["classes"]])
for row in probabilities:
    tags = [name for name, chosen in zip(model["classes"], row > thresholds, strict=True) if chosen]
    print(" ".join(tags), json.dumps(dict(zip(model["classes"], row.tolist(), strict=True))))
