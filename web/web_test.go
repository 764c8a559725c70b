package web_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"ganglion/bridge"
	"ganglion/internal/memnet"
	"ganglion/web"
)

// gateway is one with fixed numbers.
type gateway struct{ broken error }

// slow is one whose broker takes its time: asked is closed by the question, and
// the answer waits for say.
type slow struct {
	gateway
	asked, say chan struct{}
}

func (s slow) Broker() (int, map[string]uint64, error) {
	close(s.asked)
	<-s.say
	return 0, nil, nil
}

// TestShutdown: Run returns when the request under way has its answer, and not
// before; one that takes for ever is cut.
func TestShutdown(t *testing.T) {
	for _, answered := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			l := memnet.Listen()
			g := slow{asked: make(chan struct{}), say: make(chan struct{})}
			s := web.New(web.Config{Listener: l, Gateway: g, Log: slog.New(slog.DiscardHandler)})
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- s.Run(ctx) }()
			c, err := l.Dial(t.Context(), "", "")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := io.WriteString(c, "GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			<-g.asked
			cancel()
			began := time.Now()
			time.Sleep(500 * time.Millisecond)
			select {
			case err := <-done:
				t.Fatalf("Run has left a request behind: %v", err)
			default:
			}
			if answered {
				close(g.say)
				if r, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || r.StatusCode != 200 {
					t.Errorf("%v, %v", r, err)
				}
			} else {
				defer close(g.say)
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
			if took := time.Since(began); took >= time.Second {
				t.Errorf("Run took %v to end", took)
			}
		})
	}
}

// TestAcceptFails: an operator sees in the log that nobody can be accepted.
func TestAcceptFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		ctx, cancel := context.WithCancel(t.Context())
		s := web.New(web.Config{Listener: full{memnet.Listen()}, Gateway: gateway{}, Log: slog.New(slog.NewTextHandler(&log, nil))})
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		time.Sleep(time.Second)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if text := log.String(); !strings.Contains(text, "level=WARN") || !strings.Contains(text, "too many open files") {
			t.Errorf("logged %q", text)
		}
	})
}

// full is a listener whose process has too many files open.
type full struct{ net.Listener }

func (full) Accept() (net.Conn, error) {
	return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
}

func (gateway) Devices() []bridge.Status {
	return []bridge.Status{{Device: "a", State: bridge.StateJoined}, {Device: "b", State: bridge.StateJoined,
		Update: &bridge.UpdateStatus{Word: "updating"}}, {Device: "c", State: bridge.StateRefused, Update: &bridge.UpdateStatus{}}}
}

func (gateway) Counters() bridge.Counters {
	return bridge.Counters{Joins: 7, Refusals: map[string]uint64{"unauthorized": 2},
		Up: map[string]uint64{"hello": 5}, Down: map[string]uint64{"update": 1}, Hub: map[string]uint64{"status_update": 4},
		FromHub: map[string]uint64{"reboot": 3}, Errors: map[string]uint64{"bad_payload": 6}, Dropped: map[string]uint64{"expired": 8}}
}

func (g gateway) Broker() (int, map[string]uint64, error) {
	return 2, map[string]uint64{"queue_full": 9}, g.broken
}

// serve starts a Server and returns how to ask it.
func serve(t *testing.T, g gateway) func(path string) (int, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	s := web.New(web.Config{Listener: l, Gateway: g, Version: "1.2.3", Log: slog.New(slog.DiscardHandler)})
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return func(path string) (int, string) {
		t.Helper()
		r, err := http.Get("http://" + l.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return r.StatusCode, string(b)
	}
}

func TestHealth(t *testing.T) {
	for _, tt := range []struct {
		g    gateway
		path string
		code int
		body string
	}{
		{gateway{}, "/healthz", 200, "ok"},
		{gateway{}, "/readyz", 200, "ready"},
		{gateway{errors.New("broker gone")}, "/healthz", 200, "ok"},
		{gateway{errors.New("broker gone")}, "/readyz", 503, "mqtt: broker gone"},
		{gateway{fmt.Errorf("mqtt: %w", errors.New("broker gone"))}, "/readyz", 503, "mqtt: broker gone"},
		{gateway{}, "/", 404, ""},
		{gateway{}, "/debug/pprof/", 404, ""},
	} {
		code, body := serve(t, tt.g)(tt.path)
		if code != tt.code || !strings.HasPrefix(body, tt.body) {
			t.Errorf("%s: %d %q, want %d with %q", tt.path, code, body, tt.code, tt.body)
		}
	}
}

func TestMetrics(t *testing.T) {
	code, body := serve(t, gateway{})("/metrics")
	if code != 200 {
		t.Fatal(code, body)
	}
	for _, want := range []string{
		`ganglion_info{version="1.2.3"} 1`,
		`ganglion_devices{state="joined"} 2`,
		`ganglion_devices{state="refused"} 1`,
		`ganglion_devices{state="waiting"} 0`,
		`ganglion_updates{status="offered"} 1`,
		`ganglion_updates{status="updating"} 1`,
		`ganglion_mqtt_clients 2`,
		`ganglion_mqtt_up 1`,
		`ganglion_joins_total 7`,
		`ganglion_refusals_total{reason="unauthorized"} 2`,
		`ganglion_messages_total{direction="up",name="hello"} 5`,
		`ganglion_messages_total{direction="down",name="update"} 1`,
		`ganglion_messages_total{direction="hub",name="status_update"} 4`,
		`ganglion_messages_total{direction="from_hub",name="reboot"} 3`,
		`ganglion_device_errors_total{code="bad_payload"} 6`,
		`ganglion_dropped_total{policy="expired",where="bridge"} 8`,
		`ganglion_dropped_total{policy="queue_full",where="mqtt"} 9`,
	} {
		if !strings.Contains(body, want+"\n") {
			t.Errorf("no line %s", want)
		}
	}
	if code, body := serve(t, gateway{errors.New("x")})("/metrics"); code != 200 || !strings.Contains(body, "ganglion_mqtt_up 0\n") {
		t.Error("a broken broker is not shown")
	}
}
