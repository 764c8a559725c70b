package mqtt_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
	mochipackets "github.com/mochi-mqtt/server/v2/packets"

	"ganglion/internal/memnet"
	"ganglion/mqtt"
)

// recorder is a Handler that writes down what it is told.
type recorder struct {
	mu     sync.Mutex // guards the rest
	events []string
	refuse func(device, name string, payload []byte) error
}

func (r *recorder) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, fmt.Sprintf(format, args...))
}

func (r *recorder) Online(device string, _ mqtt.Client) { r.note("online %s", device) }
func (r *recorder) Offline(device string)               { r.note("offline %s", device) }
func (r *recorder) Refused(device, name string, why error) {
	r.note("refused %s %s: %v", device, name, why)
}
func (r *recorder) Received(device, name string, payload []byte) error {
	r.mu.Lock()
	refuse := r.refuse
	r.mu.Unlock()
	if refuse != nil {
		if err := refuse(device, name, payload); err != nil {
			r.note("declined %s %s %s", device, name, payload)
			return err
		}
	}
	r.note("received %s %s %s", device, name, payload)
	return nil
}

func (r *recorder) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}

func (r *recorder) want(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	if got := r.all(); !slices.Equal(got, want) {
		t.Errorf("the handler was told\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

// within waits, in the bubble's time, until ok.
func within(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for start := time.Now(); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Since(start) > limit {
			t.Fatalf("not within %v: %s", limit, what)
		}
		synctest.Wait()
	}
}

// site is somebody's broker, which lets everybody do everything, and the
// network it is reached by.
type site struct {
	t   *testing.T
	mu  sync.Mutex // guards the rest
	l   *memnet.Listener
	srv *mochi.Server
}

type allowAll struct{ mochi.HookBase }

func (allowAll) ID() string { return "allow-all" }
func (allowAll) Provides(b byte) bool {
	return b == mochi.OnConnectAuthenticate || b == mochi.OnACLCheck
}
func (allowAll) OnConnectAuthenticate(*mochi.Client, mochipackets.Packet) bool { return true }
func (allowAll) OnACLCheck(*mochi.Client, string, bool) bool                   { return true }

func newSite(t *testing.T) *site {
	s := &site{t: t}
	s.start()
	return s
}

func (s *site) start() {
	s.t.Helper()
	caps := mochi.NewDefaultServerCapabilities()
	caps.ReceiveMaximum = 1<<16 - 1 // mochi forgets what it holds back
	srv := mochi.New(&mochi.Options{Capabilities: caps, Logger: slog.New(slog.DiscardHandler), InlineClient: true})
	l := memnet.Listen()
	if err := errors.Join(srv.AddHook(new(allowAll), nil), srv.AddListener(listeners.NewNet("mem", l)), srv.Serve()); err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.l, s.srv = l, srv
}

func (s *site) stop() {
	s.mu.Lock()
	srv, l := s.srv, s.l
	s.mu.Unlock()
	l.Close()
	if err := srv.Close(); err != nil {
		s.t.Error(err)
	}
}

func (s *site) broker() *mochi.Server {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.srv
}

func (s *site) net() *memnet.Listener {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.l
}

func (s *site) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return s.net().Dial(ctx, network, addr)
}

func (s *site) config() mqtt.ExternalConfig {
	return mqtt.ExternalConfig{
		Topics: mqtt.Topics{Prefix: "nh"}, URL: "mqtt://broker.local", ClientID: "ganglion-site7", Dial: s.Dial,
		Will: mqtt.Message{Name: "gateway", Payload: []byte("offline")},
	}
}

// publish is what somebody at the site does.
func (s *site) publish(topic, payload string, retain bool) {
	s.t.Helper()
	if err := s.broker().Publish(topic, []byte(payload), retain, 1); err != nil {
		s.t.Error(err)
	}
	synctest.Wait()
}

func (s *site) retained(topic string) (string, bool) {
	for _, pk := range s.broker().Topics.Messages(topic) {
		return string(pk.Payload), true
	}
	return "", false
}

// gateway is a running Bus.
type gateway struct {
	mqtt.Bus
	cancel context.CancelFunc
	done   chan error
}

// run serves r until the test ends or stop is called.
func run(t *testing.T, b mqtt.Bus, h mqtt.Handler) *gateway {
	ctx, cancel := context.WithCancel(t.Context())
	g := &gateway{Bus: b, cancel: cancel, done: make(chan error, 1)}
	go func() { g.done <- b.Run(ctx, h) }()
	return g
}

func (g *gateway) stop(t *testing.T) {
	t.Helper()
	g.cancel()
	start := time.Now()
	if err := <-g.done; err != nil {
		t.Errorf("Run: %v", err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("Run took %v to end", took)
	}
}

func (g *gateway) up(t *testing.T) {
	t.Helper()
	within(t, time.Minute, "connected to the broker", func() bool { return g.Health().Err == nil })
}

func external(t *testing.T, c mqtt.ExternalConfig) *mqtt.External {
	t.Helper()
	e, err := mqtt.NewExternal(c)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// bubble runs f with a broker and a running External.
func bubble(t *testing.T, f func(t *testing.T, s *site, g *gateway, r *recorder)) {
	synctest.Test(t, func(t *testing.T) {
		s, r := newSite(t), new(recorder)
		g := run(t, external(t, s.config()), r)
		g.up(t)
		f(t, s, g, r)
		g.stop(t)
		s.stop()
	})
}
