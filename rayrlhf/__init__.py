"""RayRLHF: reinforcement learning of language models on Ray."""
