"""What every test process has, its children too."""

import os

# without it inductor asks the compiler what the processor can do, by compiling a file of torch's headers for each
# instruction set: half a minute in a fresh cache
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")
