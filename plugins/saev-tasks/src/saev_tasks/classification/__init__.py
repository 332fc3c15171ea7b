"""Classification: probes on pooled activations, and control of their predictions by features."""
