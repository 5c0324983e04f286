# The image of python.Dockerfile with JavaScript, C, C++, Perl and a shell. Build it with
#   docker build -t agentrl/sandbox:languages -f languages.Dockerfile .
FROM python:3.12-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends bash g++ libc6-dev nodejs perl procps \
    && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir numpy sympy scipy pandas matplotlib networkx
