# Everything a change has to pass is here, the same for a developer and for CI.
# test, build, check and fuzz need Go and nothing else.

GO      ?= go
FUZZ    ?= 10s
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

.PHONY: test race check build fuzz ci

test:
	$(GO) test ./...

# The race detector needs cgo, and so a C compiler.
race:
	CGO_ENABLED=1 $(GO) test -race -timeout 15m ./...

check:
	@unformatted=$$(git ls-files -z '*.go' | xargs -0 gofmt -l); \
	if [ -n "$$unformatted" ]; then echo "not gofmt'ed:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(GO) test ./...

# One static binary without paths of this machine in it.
build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.release=$(VERSION)' -o ganglion ./cmd/ganglion

# Every fuzz target for FUZZ each.
fuzz:
	GO=$(GO) bash .ci/fuzz $(FUZZ)

ci:
	CI=true bash .ci/run </dev/null
