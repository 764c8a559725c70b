package mqtt

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// ErrPresence is why an up/online was refused: its payload is neither 1 nor 0.
var ErrPresence = errors.New("mqtt: up/online is neither 1 nor 0")

const (
	externalMaxPacket = 256 << 10 // bytes; largest MQTT packet taken from or given to the broker
	externalDevices   = 1 << 16   // devices held to be connected; a broker without ACLs lets anybody invent them
	externalDial      = 10 * time.Second
	externalSettled   = time.Minute     // a connection that has lasted so long proves itself
	externalFlush     = 2 * time.Second // for what is queued when Run ends
)

// ExternalConfig says which broker and as whom.
type ExternalConfig struct {
	Topics
	URL      string      // mqtt://HOST[:1883], or mqtts://HOST[:8883] for TLS
	ClientID string      // fixed: the broker keeps this client's session under it
	Username string      // "" is anonymous
	Password string      // only with a Username (MQTT 3.1.1 §3.1.2.9)
	TLS      *tls.Config // for mqtts; nil is the system's roots
	Will     Message     // published by the broker, retained, when the gateway is lost; without a Name there is none
	Log      *slog.Logger
	// OnGateway hears what is said on <prefix>/gateway, the gateway's own words
	// included: once after each connect, with live false, what is retained
	// there, or nil when nothing came within 1 s of the subscription; and then,
	// live, what is published. What was published while this client was away is
	// not repeated. It must not block.
	OnGateway func(payload []byte, live bool)
	// Dial replaces [net.Dialer.DialContext].
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// External is a Bus over a broker the site already runs, as one MQTT 3.1.1
// client with a persistent session.
//
// Presence is what devices say in the retained up/online: 1, and 0 as the last
// will; any other live publish proves presence too. An older connection's will
// may come when a device takes over from itself: Offline, then Online. While
// the broker is away nothing is known and nobody goes offline; the retained
// topics tell afterwards. If the broker then has lost our session, and with it
// perhaps the wills, whoever has no retained up/online and has said nothing
// 10 s after the subscription is Offline. Otherwise a device that sets no will
// is never Offline.
//
// What Received refuses with ErrBusy is lost, Refused and counted. What it
// refuses otherwise at QoS 1 stays unacknowledged, as does all that comes after
// it; the connection is ended and, after a pause of 1 to 30 s, the broker
// delivers everything unacknowledged again, in order (§4.4, §4.6). At QoS 0 it
// is lost and counted.
//
// A queue of 1024 commands, 64 of them for one device, waits for the broker;
// further ones are dropped. Retained messages coalesce by topic. A command is
// sent only while its device is present and it has not expired; unacknowledged
// messages are published again after a reconnect under the same rules. A
// message on the will's topic is for this connection only: after another the
// will may have been published, or somebody else's word.
type External struct {
	c      ExternalConfig
	broker *url.URL // with a port
	log    *slog.Logger
	wake   chan struct{} // there is something in queue

	mu       sync.Mutex // guards what follows; never held over a call to a Handler or to paho
	queue    externalQueue
	online   map[string]struct{}
	doubted  map[string]struct{} // of online, those not heard of since the broker lost our session
	dropped  map[string]uint64
	linked   bool // connected and subscribed
	conflict bool // somebody else uses the client id
	closed   bool // Run has ended, or is about to
	err      error
}

var _ Bus = (*External)(nil)

// NewExternal checks c and connects to nothing yet.
func NewExternal(c ExternalConfig) (*External, error) {
	broker, err := externalURL(c.URL)
	switch {
	case err != nil:
		return nil, fmt.Errorf("mqtt: external: url: %w", err)
	case c.ClientID == "":
		return nil, errors.New("mqtt: external: client_id: missing; a persistent session needs a fixed one")
	case c.Password != "" && c.Username == "":
		return nil, errors.New("mqtt: external: username: missing; MQTT 3.1.1 has no password without one")
	case c.Prefix == "" || strings.ContainsAny(c.Prefix, "+#\x00"):
		return nil, fmt.Errorf("mqtt: external: prefix: want topic levels without wildcards (got %q)", c.Prefix)
	case c.Will.Device != "":
		return nil, errors.New("mqtt: external: will: must be about the gateway, not a device")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Dial == nil {
		c.Dial = new(net.Dialer).DialContext
	}
	return &External{
		c: c, broker: broker, log: c.Log, wake: make(chan struct{}, 1),
		queue: newExternalQueue(), online: map[string]struct{}{}, doubted: map[string]struct{}{}, dropped: map[string]uint64{},
		err: fmt.Errorf("%w yet", ErrOffline),
	}, nil
}

// externalPorts are the schemes and where such brokers listen.
var externalPorts = map[string]string{"mqtt": "1883", "mqtts": "8883"}

// externalURL reads a broker's address. Its errors do not repeat the URL,
// which may hold a password.
func externalURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil {
		return nil, errors.New("not a URL; want mqtt://HOST:PORT")
	}
	port, known := externalPorts[u.Scheme]
	switch {
	case !known:
		return nil, fmt.Errorf("scheme must be mqtt or mqtts (got %q)", u.Scheme)
	case u.Hostname() == "":
		return nil, errors.New("host missing; want mqtt://HOST:PORT")
	case u.User != nil:
		return nil, errors.New("must hold no credentials; use username and password_file")
	}
	if u.Port() == "" {
		u.Host = net.JoinHostPort(u.Hostname(), port)
	}
	return u, nil
}

// Run implements [Bus]. It connects after up to 1 s, and again, with growing
// pauses, whenever the connection is lost.
func (e *External) Run(ctx context.Context, h Handler) error {
	defer e.close()
	var retry externalRetry
	said := "" // the last reason logged, so that each is once
	wait := rand.N(time.Second)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		up, err := e.serve(ctx, h)
		if ctx.Err() != nil {
			return nil
		}
		wait = retry.after(time.Now(), up, err)
		if up >= externalSettled || err.Error() != said {
			said = err.Error()
			e.log.Warn("broker out of reach", "broker", e.broker.Redacted(), "err", err, "retry", wait.Round(time.Millisecond))
		}
		if e.lost(err, retry.conflict) {
			e.log.Error("another client uses this client id", "client_id", e.c.ClientID)
		}
	}
}

// Publish implements [Bus]. Its errors are [ErrQueueFull], [ErrAbsent],
// [ErrOffline], [ErrExpired], [ErrTooLarge] and [ErrTopic].
func (e *External) Publish(m Message) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	it := externalItem{Message: m, topic: e.c.Of(m), qos: 1}
	if m.Name == "fw" {
		it.qos = 0 // the device asks again for what it misses
	}
	err := e.add(it)
	if err != nil {
		e.dropped[externalReasons[err]]++
	}
	return err
}

// externalReasons name what Publish returns in Health.Dropped.
var externalReasons = map[error]string{
	ErrQueueFull: "queue_full", ErrAbsent: "absent", ErrOffline: "offline",
	ErrExpired: "expired", ErrTooLarge: "too_large", ErrTopic: "bad_topic",
}

// add queues it, under mu.
func (e *External) add(it externalItem) error {
	switch {
	case it.Device != "" && !ValidID(it.Device), it.Name == "", strings.ContainsAny(it.Name, "+#\x00"), !utf8.ValidString(it.Name):
		return ErrTopic
	case len(it.topic)+len(it.Payload)+16 > externalMaxPacket: // 16: the rest of a PUBLISH, rounded up
		return ErrTooLarge
	case e.closed, !e.linked && (it.qos == 0 && !it.Retain || e.will(it)):
		return ErrOffline
	}
	now := time.Now()
	if err := e.refuse(it, now); err != nil {
		return err
	}
	err := e.queue.add(it)
	if err != nil {
		if n := e.queue.sweep(now); n > 0 {
			e.dropped["expired"] += n
			err = e.queue.add(it)
		}
	}
	if err != nil {
		return err
	}
	select {
	case e.wake <- struct{}{}:
	default:
	}
	return nil
}

// refuse says why it must not be sent now, under mu.
func (e *External) refuse(it externalItem, now time.Time) error {
	if it.expired(now) {
		return ErrExpired
	}
	if _, here := e.online[it.Device]; !here && !it.Retain && it.Device != "" {
		return ErrAbsent // a foreign broker would keep it for a persistent session, past any expiry
	}
	return nil
}

// take is the next message to send.
func (e *External) take() (externalItem, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for {
		it, ok := e.queue.pop()
		if !ok {
			return it, false
		}
		why := e.refuse(it, time.Now())
		if why == nil {
			return it, true
		}
		e.dropped[externalReasons[why]]++
	}
}

// Health implements [Bus].
func (e *External) Health() Health {
	e.mu.Lock()
	defer e.mu.Unlock()
	return Health{Err: e.err, Devices: len(e.online), Dropped: maps.Clone(e.dropped)}
}

// will reports whether it is on the topic of our will.
func (e *External) will(it externalItem) bool {
	return e.c.Will.Name != "" && it.topic == e.c.Of(e.c.Will)
}

// linkUp notes that the broker serves us.
func (e *External) linkUp() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.linked = true
	if !e.conflict {
		e.err = nil
	}
}

// settled notes that the connection has lasted.
func (e *External) settled() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.conflict, e.err = false, nil
}

// linkDown keeps what was sent and not acknowledged, oldest first, without what
// is for this connection only.
func (e *External) linkDown(unacked []externalItem) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.linked = false
	e.queue.drop(e.c.Of(e.c.Will))
	for i := len(unacked) - 1; i >= 0; i-- {
		if unacked[i].qos == 0 || e.will(unacked[i]) {
			e.dropped["offline"]++
			continue
		}
		e.queue.back(unacked[i])
	}
}

// lost notes why there is no connection. It reports whether a conflict over
// the client id is new.
func (e *External) lost(err error, conflict bool) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	fresh := conflict && !e.conflict
	e.conflict, e.err = conflict, err
	if conflict {
		e.err = fmt.Errorf("mqtt: external: another client uses this client id %q: %w", e.c.ClientID, err)
	}
	return fresh
}

func (e *External) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed, e.linked, e.err = true, false, ErrOffline
}

func (e *External) count(reason string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.dropped[reason]++
}

// arrive notes that device is there; fresh says it was not known before. ok is
// false when there are too many.
func (e *External) arrive(device string) (fresh, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.doubted, device)
	if _, known := e.online[device]; known {
		return false, true
	}
	if len(e.online) >= externalDevices {
		e.dropped["too_many_devices"]++
		return false, false
	}
	e.online[strings.Clone(device)] = struct{}{} // not the packet the name is part of
	return true, true
}

// leave notes that device is gone, and reports whether it was there.
func (e *External) leave(device string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	_, known := e.online[device]
	delete(e.online, device)
	delete(e.doubted, device)
	return known
}

// externalRetry decides when to connect again.
type externalRetry struct {
	failures int
	kicks    []time.Time // when the broker closed a young connection, within the last minute
	conflict bool        // until a connection has lasted
}

// after is how long to wait, given that a connection which was up for so long
// (0: never) ended now with err: 1–2, 2–4, 4–8, 8–16, then 15–30 s, from the
// start again after one that lasted a minute. MQTT 3.1.1 has no word for "taken
// over": more than three closes by the broker within a minute are one
// (§3.1.4-2), and then it is 30 s and up to 5 s more.
func (r *externalRetry) after(now time.Time, up time.Duration, err error) time.Duration {
	if up >= externalSettled {
		*r = externalRetry{}
	}
	for len(r.kicks) > 0 && now.Sub(r.kicks[0]) > time.Minute {
		r.kicks = r.kicks[1:]
	}
	if up > 0 && errors.Is(err, errExternalPeer) {
		r.kicks = append(r.kicks, now)
	}
	if len(r.kicks) > 3 {
		r.conflict = true
	}
	r.failures = min(r.failures+1, 5)
	if r.conflict {
		return 30*time.Second + rand.N(5*time.Second)
	}
	ceiling := min(time.Second<<r.failures, 30*time.Second)
	return ceiling/2 + rand.N(ceiling/2)
}
