package mqtt

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
)

// What a device can make the broker log, it can make it log a thousand times a
// second: at most logBurst records pass in each logWindow.
const (
	logBurst  = 20
	logWindow = 10 * time.Second
)

// packetAttrs are the attributes in which mochi logs whole packets: payloads,
// user names, firmware URLs.
var packetAttrs = []string{"pk", "packet", "will"}

// A guardedLog is a slog.Handler for records that devices can provoke. It drops
// everything below Warn and every attribute that holds a packet, and limits
// the rate.
type guardedLog struct {
	slog.Handler
	limit *logLimit
}

// newGuardedLog returns a logger to l's handler.
func newGuardedLog(l *slog.Logger) *slog.Logger {
	return slog.New(guardedLog{l.Handler(), &logLimit{}})
}

func (g guardedLog) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelWarn && g.Handler.Enabled(ctx, level)
}

func (g guardedLog) Handle(ctx context.Context, r slog.Record) error {
	if r.Message == mochi.ErrMinimumKeepalive.Error() {
		return nil // a device may ask for none
	}
	pass, suppressed := g.limit.take(r.Time)
	if !pass {
		return nil
	}
	clean := slog.NewRecord(r.Time, r.Level, r.Message, r.PC)
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "error" { // as mochi has it; the gateway has err
			a.Key = "err"
		}
		if !slices.Contains(packetAttrs, a.Key) {
			clean.AddAttrs(a)
		}
		return true
	})
	if suppressed > 0 {
		clean.AddAttrs(slog.Int("suppressed_before", suppressed))
	}
	return g.Handler.Handle(ctx, clean)
}

func (g guardedLog) WithAttrs(as []slog.Attr) slog.Handler {
	as = slices.DeleteFunc(slices.Clone(as), func(a slog.Attr) bool { return slices.Contains(packetAttrs, a.Key) })
	return guardedLog{g.Handler.WithAttrs(as), g.limit}
}

func (g guardedLog) WithGroup(name string) slog.Handler {
	return guardedLog{g.Handler.WithGroup(name), g.limit}
}

// A logLimit lets logBurst records pass in each logWindow.
type logLimit struct {
	mu         sync.Mutex // guards what follows
	until      time.Time
	passed     int
	suppressed int
}

// take reports whether a record may pass, and how many did not since the last
// that did.
func (l *logLimit) take(now time.Time) (pass bool, suppressed int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.After(l.until) {
		l.until, l.passed = now.Add(logWindow), 0
	}
	if l.passed >= logBurst {
		l.suppressed++
		return false, 0
	}
	l.passed++
	suppressed, l.suppressed = l.suppressed, 0
	return true, suppressed
}
