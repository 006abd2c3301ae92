"""A stand-in for CUDA graphs."""

from fastmeta.meta.engines.captured import WARM_UP


class Recorder:
    """As a CUDA graph: the body's Python runs once; a replay reads and writes the same memory, results included."""

    def __init__(self):
        self.replays = 0

    def __call__(self, body):
        for _ in range(WARM_UP):
            body()
        outputs = [t.clone() for t in body()]

        def replay():
            self.replays += 1
            for to, value in zip(outputs, body(), strict=True):
                to.copy_(value)

        return outputs, replay


def states(step):
    momentum = [s["momentum_buffer"] for s in step.optimizer.state.values()]
    return [*step.model.state_dict().values(), *step.labels.state_dict().values(), *momentum]
