package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"
)

// parts are the things that run, each with a name and a time to end in. Run
// owns them; none of its methods may be called concurrently.
type parts struct {
	log  *slog.Logger
	fail context.CancelCauseFunc // ends the gateway when a part does
	by   map[string]*part
	over atomic.Bool // the gateway ends anyway: fail would not be heard
}

type part struct {
	end   context.CancelFunc
	done  chan struct{}
	bound time.Duration
}

func newParts(log *slog.Logger, fail context.CancelCauseFunc) *parts {
	return &parts{log: log, fail: fail, by: map[string]*part{}}
}

// start runs a part until stop. One that ends by itself ends the gateway.
func (p *parts) start(name string, bound time.Duration, run func(context.Context) error) {
	ctx, end := context.WithCancel(context.Background())
	one := &part{end: end, done: make(chan struct{}), bound: bound}
	p.by[name] = one
	go func() {
		defer close(one.done)
		switch err := run(ctx); {
		case err == nil:
		case p.over.Swap(true):
			p.log.Error("a part failed while the gateway was ending", "part", name, "err", err)
		default:
			p.fail(fmt.Errorf("%s: %w", name, err))
		}
	}()
}

// stop ends a part and waits for it as long as it may take.
func (p *parts) stop(name string) {
	p.over.Store(true)
	one := p.by[name]
	one.end()
	select {
	case <-one.done:
	case <-time.After(one.bound):
		p.log.Warn("did not end in time", "part", name, "bound", one.bound)
	}
}
