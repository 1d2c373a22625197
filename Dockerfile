# SPDX-License-Identifier: Apache-2.0
# The API, the workers and the migrations in one image; the command chooses.

FROM python:3.13-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
COPY requirements.lock requirements-dev.lock ./
RUN python -m venv /opt/eucora \
    && /opt/eucora/bin/pip install --require-hashes --no-deps --only-binary :all: -r requirements.lock
# The development lock has the builder: nothing comes in without a hash.
RUN pip install --require-hashes --no-deps --only-binary :all: -r requirements-dev.lock
COPY . ./
RUN python -m hatchling build --target wheel --directory /wheels \
    && /opt/eucora/bin/pip install --no-deps --no-index /wheels/*.whl \
    && /opt/eucora/bin/pip uninstall --yes pip

FROM python:3.13-slim-bookworm
ENV PATH=/opt/eucora/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN groupadd --gid 10001 eucora && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent eucora
COPY --from=build /opt/eucora /opt/eucora
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000
ENTRYPOINT ["eucora"]
CMD ["api", "--host", "0.0.0.0", "--port", "8000"]
