"""What runs in the environment that has vLLM. Imports nothing of agentrl."""
