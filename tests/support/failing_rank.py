"""A method whose second rank does something at one step, as the environment says: RANK_DOES, RANK_STEP."""

import os
import signal

from fastmeta.methods.instance_labels import InstanceLabelMethod


class Failing(InstanceLabelMethod):
    steps = 0

    def step(self, batch):
        self.steps += 1
        again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"  # torchrun has started all anew
        if os.environ["RANK"] == "1" and not again and self.steps == int(os.environ.get("RANK_STEP", "12")):
            does = os.environ.get("RANK_DOES", "nothing")
            if does == "raise":
                raise ValueError("this rank has had enough")
            if does in ("SIGKILL", "SIGTERM"):
                os.kill(os.getpid(), getattr(signal, does))
        return super().step(batch)
