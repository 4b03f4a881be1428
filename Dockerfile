# The page in a container, as nobody in particular:
#     docker build -t tubelet .
#     docker run --rm -p 127.0.0.1:8765:8765 -v "$PWD/runs:/runs:ro" tubelet /runs/NAME
# It prints the token that the address wants. Nothing is written but to /tmp.
FROM python:3.11-slim

WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
# torch first and alone, as the Makefile does: the largest download, and a failure there says so and nothing else.
RUN pip install --no-cache-dir -c constraints.txt torch \
 && pip install --no-cache-dir -c constraints.txt '.[serve,text,search,flow]' \
 && useradd --create-home --uid 10001 tubelet

USER tubelet
EXPOSE 8765
HEALTHCHECK --start-period=60s CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8765/readyz')"]
ENTRYPOINT ["tubelet", "serve", "--host", "0.0.0.0"]
