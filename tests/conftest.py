"""What every test process has, its children too."""

import os
import signal

import torch

# a shell starts its background jobs with Ctrl-C ignored, nohup with hang-ups, and a run keeps that: tests send them
for number, usual in ((signal.SIGINT, signal.default_int_handler), (getattr(signal, "SIGHUP", None), signal.SIG_DFL)):
    if number is not None and signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, usual)

# without it inductor asks the compiler what the processor can do, by compiling a file of torch's headers for each
# instruction set: half a minute in a fresh cache
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")

# Autograd starts its threads, one for each device, in the first backward of a process, and no child may differentiate
# after that. Where fake tensors came before, torch counts one CUDA device that is not there: a first backward now, on
# the CPU alone, starts none, so that tests may fork whatever ran before them.
torch.zeros((), requires_grad=True).backward()
