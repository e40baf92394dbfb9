"""Print the losses of four steps on 1, 2, 4 and 8 devices: python -m tests.losses_by_devices.

The first four runs have global BatchNorm, the last four have BatchNorm per device.
"""

import json

from tests.steps import take_steps

runs = [(devices, norm) for norm in ("global", "device") for devices in (1, 2, 4, 8)]
# At this small rate, differences from near-ties in the max pool do not grow.
print(json.dumps([take_steps("tiny", *run[:1], 4, run[1], lr=1e-5)[1] for run in runs]))
