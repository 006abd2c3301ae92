"""How the graphs of a step are held: traced whole, through inductor, captured in a CUDA graph."""
