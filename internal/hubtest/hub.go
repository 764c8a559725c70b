package hubtest

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"ganglion/internal/hubtest/auth"
)

// A Config says what a Hub is like. The zero value behaves in its timing as
// the real server does.
type Config struct {
	// Log is told what happens, in order and one thing at a time; it may be nil.
	// It may call the Hub.
	Log func(Entry)
	// Auth says who a connection is; an empty registry when nil.
	Auth *auth.Registry
	// Certificate is the device endpoint's; without one Serve speaks plain HTTP
	// and devices have only shared secrets.
	Certificate tls.Certificate

	WebURL     string   // where downloads are, without a trailing slash; the address of ServeWeb's listener when empty
	Group      Group    // the deployment group of the product
	Keys       []string // signing keys of the organization, pushed to devices that ask
	Extensions []string // keys of the extensions the product has turned on; none by default, as on the real server

	ScheduleEvery       time.Duration // the orchestrator looks at most this often; 3 s
	TimerEvery          time.Duration // and at least this often, plus up to a sixth of it by chance; 120 s
	Idle                time.Duration // a socket without any inbound byte is closed; 180 s
	InflightExpiry      time.Duration // an inflight row without a change is deleted; 30 min
	ExpiryEvery         time.Duration // when that is looked for: every full multiple on the clock; 5 min
	HandshakesPerSecond int           // connections beyond it are closed before TLS; 100, -1 for no limit
	DrainBatch          int           // sockets closed at once by Drain; 1000
	DrainInterval       time.Duration // between two batches; 4 s
}

func (c *Config) defaults() {
	if c.Auth == nil {
		c.Auth = auth.New()
	}
	c.ScheduleEvery = cmp.Or(c.ScheduleEvery, 3*time.Second)
	c.TimerEvery = cmp.Or(c.TimerEvery, 120*time.Second)
	c.Idle = cmp.Or(c.Idle, 180*time.Second)
	c.InflightExpiry = cmp.Or(c.InflightExpiry, 30*time.Minute)
	c.ExpiryEvery = cmp.Or(c.ExpiryEvery, 5*time.Minute)
	c.HandshakesPerSecond = cmp.Or(c.HandshakesPerSecond, 100)
	c.DrainBatch = cmp.Or(c.DrainBatch, 1000)
	c.DrainInterval = cmp.Or(c.DrainInterval, 4*time.Second)
}

// An Entry is one thing that happened, for people to read.
type Entry struct {
	Time   time.Time
	Device string
	Text   string
}

// A Hub is one NervesHub node with one product and one deployment group.
type Hub struct {
	cfg   Config
	wake  chan struct{} // holds one signal for run: the agenda has a new first entry
	done  chan struct{} // closed by Close
	wg    sync.WaitGroup
	start sync.Once // of run
	stop  sync.Once // of Close

	mu         sync.Mutex // guards everything below
	closed     bool
	servers    []*http.Server
	webURL     string
	devices    map[string]*device
	firmware   map[string]*Firmware
	archives   map[string]*Archive
	group      group
	extensions map[string]bool
	sockets    map[*socket]struct{}
	born       int                             // sockets so far
	subs       map[string]map[*socket]*channel // alive channels by internal topic
	scrollback map[string][]string             // console lines by internal topic
	agenda     agenda
	lastLook   time.Time
	lookAt     time.Time // of the look on the agenda; zero when there is none
	draining   bool
	gates      []*auth.Gate
	shed       int                // of a gate to come
	refusals   map[refusalKey]int // still to come

	// What unlock hands out once the lock is gone.
	rewake  bool
	entries []Entry
	telling bool // somebody is in tell
	touched map[string]struct{}
	waiters map[string][]chan struct{} // by device, one channel per Wait
	cuts    []*socket
}

// New makes a Hub; nothing runs until Serve or ServeWeb.
func New(c Config) *Hub {
	c.defaults()
	h := &Hub{
		cfg: c, wake: make(chan struct{}, 1), done: make(chan struct{}),
		webURL: c.WebURL, group: newGroup(c.Group),
		devices: map[string]*device{}, firmware: map[string]*Firmware{}, archives: map[string]*Archive{},
		extensions: map[string]bool{}, sockets: map[*socket]struct{}{},
		refusals: map[refusalKey]int{}, subs: map[string]map[*socket]*channel{}, scrollback: map[string][]string{},
		touched: map[string]struct{}{}, waiters: map[string][]chan struct{}{},
	}
	for _, key := range c.Extensions {
		h.extensions[key] = true
	}
	return h
}

// Serve accepts devices on l until Close, then returns nil.
func (h *Hub) Serve(l net.Listener) error {
	gate := auth.Listener(l)
	gate.Limit(h.cfg.HandshakesPerSecond)
	h.mu.Lock()
	gate.Shed(h.shed)
	h.shed = 0
	h.gates = append(h.gates, gate)
	h.unlock()
	l = gate
	if len(h.cfg.Certificate.Certificate) > 0 {
		l = tls.NewListener(l, h.cfg.Auth.TLS(h.cfg.Certificate, h.refuseCertificate))
	}
	return h.serve(l, h.deviceEndpoint())
}

// ServeWeb serves the web endpoint on l until Close, then returns nil.
func (h *Hub) ServeWeb(l net.Listener) error {
	h.mu.Lock()
	h.webURL = cmp.Or(h.webURL, "http://"+reachable(l.Addr()))
	h.unlock()
	return h.serve(l, h.webEndpoint())
}

// reachable is an address to dial on this machine.
func reachable(a net.Addr) string {
	if t, ok := a.(*net.TCPAddr); ok && t.IP.IsUnspecified() {
		return net.JoinHostPort("localhost", strconv.Itoa(t.Port))
	}
	return a.String()
}

func (h *Hub) serve(l net.Listener, handler http.Handler) error {
	srv := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          log.New(io.Discard, "", 0),
		TLSNextProto:      map[string]func(*http.Server, *tls.Conn, http.Handler){}, // no HTTP/2
		ConnState: func(_ net.Conn, s http.ConnState) {
			switch s {
			case http.StateNew:
				h.wg.Add(1)
			case http.StateClosed, http.StateHijacked: // a hijacker counts itself
				h.wg.Done()
			}
		},
	}
	h.mu.Lock()
	if h.closed {
		h.unlock()
		return l.Close()
	}
	h.servers = append(h.servers, srv)
	h.wg.Add(1)
	h.unlock()
	defer h.wg.Done()
	h.start.Do(func() { h.wg.Go(h.run) })
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Close cuts every connection and returns when everything has ended.
func (h *Hub) Close() error {
	h.stop.Do(func() {
		h.mu.Lock()
		h.closed = true
		servers := h.servers
		for s := range h.sockets {
			h.cuts = append(h.cuts, s)
		}
		h.unlock()
		close(h.done)
		for _, srv := range servers {
			srv.Close()
		}
	})
	h.wg.Wait()
	return nil
}

// run works off the agenda.
func (h *Hub) run() {
	h.mu.Lock()
	now := time.Now()
	h.tick(now)
	h.expire(now)
	h.sweep(now)
	h.unlock()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-h.done:
			return
		case <-h.wake:
		case <-timer.C:
		}
		h.mu.Lock()
		now := time.Now()
		for do, ok := h.agenda.due(now); ok; do, ok = h.agenda.due(now) {
			do(now)
		}
		wait := h.agenda.next(now)
		h.unlock()
		timer.Reset(wait)
	}
}

// later puts do on the agenda; it is called with mu held.
func (h *Hub) later(at time.Time, do func(time.Time)) {
	h.agenda.add(at, do)
	h.rewake = true
}

// unlock ends a critical section and then does what must not be done in one:
// waking run and those who wait, cutting connections, telling the log.
func (h *Hub) unlock() {
	cuts, rewake := h.cuts, h.rewake
	h.cuts, h.rewake = nil, false
	var wake []chan struct{}
	for id := range h.touched {
		wake = append(wake, h.waiters[id]...)
		delete(h.waiters, id)
	}
	clear(h.touched)
	tell := len(h.entries) > 0 && !h.telling // else whoever is telling goes on
	h.telling = h.telling || tell
	h.mu.Unlock()
	if rewake {
		select {
		case h.wake <- struct{}{}:
		default:
		}
	}
	for _, s := range cuts {
		s.cut()
	}
	for _, c := range wake {
		close(c)
	}
	if tell {
		h.tell()
	}
}

// tell gives the log everything there is to tell, one caller at a time so that
// the order is kept.
func (h *Hub) tell() {
	for {
		h.mu.Lock()
		entries := h.entries
		h.entries = nil
		h.telling = len(entries) > 0
		h.mu.Unlock()
		if len(entries) == 0 {
			return
		}
		for _, e := range entries {
			h.cfg.Log(e)
		}
	}
}

// say notes an entry for the log; it is called with mu held.
func (h *Hub) say(device, text string) {
	h.touched[device] = struct{}{}
	if h.cfg.Log != nil {
		h.entries = append(h.entries, Entry{time.Now(), device, text})
	}
}

// Wait returns once cond holds for the device, or with the context's error.
// cond is called whenever something happened to the device, and not before the
// device is known.
func (h *Hub) Wait(ctx context.Context, id string, cond func(DeviceState) bool) error {
	for {
		changed := make(chan struct{})
		h.mu.Lock()
		state, ok := h.state(id)
		h.waiters[id] = append(h.waiters[id], changed)
		h.unlock()
		if ok && cond(state) {
			h.forget(id, changed)
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			h.forget(id, changed)
			return context.Cause(ctx)
		}
	}
}

func (h *Hub) forget(id string, c chan struct{}) {
	h.mu.Lock()
	defer h.unlock()
	h.waiters[id] = slices.DeleteFunc(h.waiters[id], func(w chan struct{}) bool { return w == c })
	if len(h.waiters[id]) == 0 {
		delete(h.waiters, id)
	}
}

// chance is a random part of d.
func chance(d time.Duration) time.Duration { return time.Duration(rand.Int64N(int64(d) + 1)) }
