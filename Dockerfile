# One image for all of the platform's own processes; docker-compose.yml names the one of each container.

FROM python:3.13-slim-trixie AS build
RUN python3 -m venv /opt/feature_platform
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE dagster.yaml workspace.yaml ./
COPY sql sql
COPY feature_platform feature_platform
RUN /opt/feature_platform/bin/python -m pip install --no-cache-dir --disable-pip-version-check -c constraints.txt .

FROM python:3.13-slim-trixie
RUN groupadd --gid 10001 feature_platform \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/feature_platform --shell /usr/sbin/nologin feature_platform \
 && install -d -o feature_platform -g feature_platform -m 0750 /var/lib/feature_platform /var/lib/dagster /var/lib/dagster/storage
COPY --from=build /opt/feature_platform /opt/feature_platform
COPY dagster.yaml /var/lib/dagster/dagster.yaml
COPY deploy/workspace.yaml /etc/feature_platform/workspace.yaml
COPY --chmod=0755 deploy/set-up.sh /usr/local/bin/feature-platform-set-up
ENV PATH=/opt/feature_platform/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    MPLCONFIGDIR=/tmp/matplotlib \
    FEATURE_PLATFORM_HOME=/var/lib/feature_platform \
    DAGSTER_HOME=/var/lib/dagster \
    DAGSTER_EVENT_BATCH_SIZE=100
WORKDIR /var/lib/feature_platform
USER 10001:10001
CMD ["feature-platform", "--help"]
