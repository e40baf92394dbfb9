"""Print the losses of four steps on 1, 2, 4 and 8 devices: python -m tests.losses_by_devices.

First with global BatchNorm, then with that of each device.
"""

import json

from tests.steps import take_steps

runs = [(devices, norm) for norm in ("global", "device") for devices in (1, 2, 4, 8)]
# At a rate so small that the near-ties of the max pool do not multiply.
print(json.dumps([take_steps("tiny", *run[:1], 4, run[1], lr=1e-5)[1] for run in runs]))
