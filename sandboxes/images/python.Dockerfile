# Python with what programs of language models like to import. Build it with
#   docker build -t agentrl/sandbox:python -f python.Dockerfile .
FROM python:3.12-slim
RUN pip install --no-cache-dir numpy sympy scipy pandas matplotlib networkx
