# The captioner as a server on a CPU; docs/serving.md has the commands.
FROM python:3.12-slim

# The address of PyTorch's CPU builds, as for the Makefile: without it the image has CUDA's libraries, 5 GB.
ARG TORCH_INDEX=

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /app

# The packages first: they change less often than the code.
COPY requirements.txt requirements-optional.txt ./
RUN pip install torch torchvision ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} \
    && pip install -r requirements.txt starlette uvicorn python-multipart --constraint requirements-optional.txt

COPY captioning/ captioning/
COPY captioner/ captioner/
COPY inference/ inference/
COPY serving/ serving/
COPY models/ models/
COPY model.py vocabulary.py serve.py ./

# Files belong to root, so that the server cannot change them.
RUN useradd --system --uid 10001 --no-create-home captions
USER captions

EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "serve.py", "--host", "0.0.0.0", "--port", "8000"]
