# The trainer for NVIDIA GPUs. docs/clusters.md says how to build and run it.

# PyTorch's wheels bring CUDA's run-time libraries, cuDNN and NCCL, so the "base" image is enough:
# it has what lets the container toolkit pass in the driver, and refuses a driver too old for CUDA
# 13.2, which the pinned torch is built for. There is no nvcc: DeepSpeed's own CUDA ops are not
# available, and ZeRO with torch optimizers needs none of them. The tag is not pinned by digest: no
# registry of images could be reached here to read one. To pin it, run `docker buildx imagetools
# inspect nvidia/cuda:13.2.1-base-ubuntu24.04` and append @sha256:... to the tag.
FROM nvidia/cuda:13.2.1-base-ubuntu24.04

# gcc, g++ and python3-dev: torch.compile builds its kernels' launchers at run time. No versions are
# given: Ubuntu keeps only the newest of each package, so a pinned one would stop the build at its
# next security update.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        g++ \
        gcc \
        libc6-dev \
        python3 \
        python3-dev \
        python3-venv \
    && rm -rf /var/lib/apt/lists/*

# Ubuntu 24.04 gives uid 1000 to a user named ubuntu. Our user needs it: it usually owns a
# bind-mounted folder.
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

# A run without a mounted folder still finds `recipes/...`. A bind mount hides this link and brings
# its own recipes/.
RUN mkdir /workspace \
    && ln -s /opt/vanillakd/recipes /workspace/recipes \
    && chown distill:distill /workspace
ENV HF_HOME=/workspace/.cache/huggingface
WORKDIR /workspace
# By number, so that Kubernetes can see that it is not root.
USER 1000
VOLUME ["/workspace"]

ENTRYPOINT ["distill"]
CMD ["--help"]
