"""Print the losses of four steps on 1, 2, 4 and 8 devices: python -m tests.losses_by_devices.

The first four runs have global BatchNorm, the last four have BatchNorm per device.
"""

import json

from tests.steps import take_steps

runs = [(devices, norm) for norm in ("global", "device") for devices in (1, 2, 4, 8)]
losses = [take_steps("tiny", devices, 4, norm, "float64")[1] for devices, norm in runs]
print(json.dumps(losses))
