"""vLLM as a policy: ids in, ids out, in this process or in one (and an environment) of its own.

vLLM pins much, so it need not be installed beside agentrl: `AGENTRL_VLLM_PYTHON` names the Python
of an environment that has it. What runs there (the files in `inside`) imports nothing of agentrl.
See docs/vllm.md.
"""

PYTHON = "AGENTRL_VLLM_PYTHON"
"""Names the Python of the environment that has vLLM."""
