"""Print the tags of chips, using the files beside this one: python example.py CHIPS.npy

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
chips = np.load(sys.argv[1]) if len(sys.argv) == 2 else sys.exit(__doc__)
if max(chips.shape[1:3]) > (max_side := model["input"]["most_pixels"]):
    sys.exit(f"{sys.argv[1]}: chips of {chips.shape[1:3]} are too large: {max_side} pixels at most")
try:
    serving = export.deserialize(bytearray((here / "serving.bin").read_bytes()))
    if serving.calling_convention_version > export.maximum_supported_calling_convention_version:
        raise ValueError(f"calling convention {serving.calling_convention_version} is too new")
    probabilities = np.asarray(jax.jit(serving.call)(chips))  # float32 [b, classes]
except Exception as error:  # another version, platform, or shape
    reason, written_by = " ".join(str(error).split()), model["serving"]["jax"]
    sys.exit(f"serving.bin (by jax {written_by}) fails with jax {jax.__version__} here: {reason}")
thresholds = np.array([model["thresholds"][name] for name in model["classes"]])
for row in probabilities:
    tags = [name for name, chosen in zip(model["classes"], row > thresholds, strict=True) if chosen]
    print(" ".join(tags), json.dumps(dict(zip(model["classes"], row.tolist(), strict=True))))
