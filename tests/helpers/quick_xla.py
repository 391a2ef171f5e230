"""XLA flags for tests: programs that compile several times faster, which is worth more here than running fast once."""

import importlib.metadata

FLAGS = "--xla_backend_optimization_level=0"  # LLVM's; XLA's own optimizations stay
if importlib.metadata.version("jaxlib") < "0.11":  # unknown to later ones, which end the process over an unknown flag
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
