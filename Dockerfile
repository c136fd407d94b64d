# The trainer for NVIDIA GPUs.
#
#   docker build -t vanillakd .
#   docker run --rm --init --gpus all --ipc=host -v "$PWD":/workspace vanillakd train quickstart/teacher
#   docker run --rm --init --gpus all --ipc=host -v "$PWD":/workspace --entrypoint accelerate vanillakd \
#     launch --config_file /opt/vanillakd/launchers/accelerate/gpus8.yaml -m distill train recipes/mine.yaml
#
# --ipc=host (or --shm-size=16g) is needed: loader processes and NCCL pass data through shared memory, and Docker gives
# a container 64 MiB of it. --init reaps loader processes. Recipes that come with the project are found by name wherever
# one stands; /workspace takes runs, exports and the model cache, and must be writable for uid 1000.

# PyTorch's wheels bring CUDA's run-time libraries, cuDNN and NCCL, so the "base" image is enough: it has what lets the
# container toolkit hand in the driver, and refuses a driver too old for CUDA 13.2, which the pinned torch is built for.
# There is no nvcc: DeepSpeed's own CUDA ops are not available, and ZeRO with torch optimizers needs none of them.
FROM nvidia/cuda:13.2.1-base-ubuntu24.04

# gcc, g++ and python3-dev: torch.compile builds its kernels' launchers at run time.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        g++ \
        gcc \
        libc6-dev \
        python3 \
        python3-dev \
        python3-venv \
    && rm -rf /var/lib/apt/lists/*

# Ubuntu 24.04 gives uid 1000 to a user named ubuntu. We want that uid, the usual owner of a bind-mounted folder.
RUN if id ubuntu >/dev/null 2>&1; then userdel --remove ubuntu; fi \
    && groupadd --gid 1000 distill \
    && useradd --uid 1000 --gid 1000 --create-home --shell /bin/bash distill

ENV VIRTUAL_ENV=/opt/venv \
    PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1

# Dependencies first: this layer of several gigabytes changes only with the pins.
WORKDIR /opt/vanillakd
COPY pyproject.toml constraints.txt ./
RUN python3 -m venv "$VIRTUAL_ENV" \
    && pip install --no-cache-dir --disable-pip-version-check -c constraints.txt uv \
    && uv pip install --no-cache --compile-bytecode -c constraints.txt -r pyproject.toml --extra deepspeed tensorboard

# Editable, so that the recipes beside the package are the ones that it finds by name.
COPY README.md LICENSE ./
COPY distill distill
COPY recipes recipes
COPY launchers launchers
RUN uv pip install --no-cache --no-deps -e .

# A run without a mounted folder still finds `recipes/...`. A bind mount hides this link and brings its own recipes/.
RUN mkdir /workspace \
    && ln -s /opt/vanillakd/recipes /workspace/recipes \
    && chown distill:distill /workspace
ENV HF_HOME=/workspace/.cache/huggingface
WORKDIR /workspace
USER distill
VOLUME ["/workspace"]

ENTRYPOINT ["distill"]
CMD ["--help"]
