"""fastmeta: labels learned by exact meta-gradients, with fused kernels."""

__version__ = "0.1.0"
