package gateway

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// The first failure ends the gateway; what fails after that is in the log.
func TestPartsFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		ctx, fail := context.WithCancelCause(t.Context())
		p := newParts(slog.New(slog.NewTextHandler(&log, nil)), fail)
		p.start("first", time.Second, func(context.Context) error { return errors.New("boom") })
		p.start("last", time.Second, func(ctx context.Context) error { <-ctx.Done(); return errors.New("crash") })
		p.start("good", time.Second, func(ctx context.Context) error { <-ctx.Done(); return nil })
		synctest.Wait()
		if err := context.Cause(ctx); err == nil || err.Error() != "first: boom" {
			t.Errorf("ended by %v", err)
		}
		p.stop("first")
		p.stop("last")
		p.stop("good")
		if text := log.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "part=last err=crash") {
			t.Errorf("logged %q", text)
		}
	})
}

// In an orderly end, too.
func TestPartsFailAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		ctx, fail := context.WithCancelCause(t.Context())
		p := newParts(slog.New(slog.NewTextHandler(&log, nil)), fail)
		p.start("only", time.Second, func(ctx context.Context) error { <-ctx.Done(); return errors.New("crash") })
		p.stop("only")
		if ctx.Err() != nil || !strings.Contains(log.String(), "part=only err=crash") {
			t.Errorf("ended by %v, logged %q", context.Cause(ctx), log.String())
		}
	})
}
