# A static binary and CA roots on nothing. The build needs an image with Go and
# CA certificates; another than the official one is GO_IMAGE.
ARG GO_IMAGE=golang:1.26

FROM ${GO_IMAGE} AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=
RUN CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w -X main.release=${VERSION}" -o /out/ganglion ./cmd/ganglion \
 && mkdir -p /out/state /out/tmp

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/ganglion /ganglion
COPY --from=build --chown=65532:65532 /out/state /var/lib/ganglion
COPY --from=build --chown=65532:65532 /out/tmp /tmp
USER 65532:65532
VOLUME /var/lib/ganglion
# MQTT; health and metrics
EXPOSE 1883 8081
ENTRYPOINT ["/ganglion"]
CMD ["run", "--config", "/etc/ganglion/config.yaml"]
